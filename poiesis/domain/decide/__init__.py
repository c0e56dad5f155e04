"""What to do next about a task: pure, from the task, what is observed of it, the time and the policy.

`decide` is level-triggered: it looks at the current situation, never at events, so calling it twice, late or from several
processes gives the same result. It returns a `Decision`: effects to apply to the cluster, and the task to save once they have succeeded.

    stage      when                                      effects                     then
    prepare    -                                         volume, if one is needed    stage_in, or launch without filers
    stage_in   single layout                             filers' documents           launch
               staged, TIF not launched                  documents, TIF pod          wait
               staged, TIF succeeded                     -                           launch
    launch     -                                         first executors' pod        run
    run        pod not ended                             -                           wait; show state and reason
               succeeded, another executors' pod         that pod                    wait
               ended                                     -                           stage_out (staged with outputs), or finish
               TOF lost                                  -                           stage_out
    stage_out  TOF not launched / ended                  TOF pod / -                 wait / finish
               TOF lost                                  -                           wait, then a TOF pod of the next name
    finish     canceled, pods exist / gone               delete pods / -             wait / CANCELED, clean
               attempt lost and to be retried            delete all, until gone      next attempt: prepare
               else                                      -                           the outcome's state, clean
    clean      not observed yet, or not gone             delete all                  wait
               gone                                      -                           done
    others     pod lost to the infrastructure            -                           finish: retry, or SYSTEM_ERROR

Any role may move a task through a stage without effects. `stages` is this table; `progress` follows a pod, which `run`, `stage_in` and
`stage_out` share; `endings` classifies how containers ended; `journal` writes what clients see of it.
"""

from poiesis.domain.decide.actions import (
    CreateDocuments,
    CreateVolume,
    Decision,
    DeleteAll,
    DeletePods,
    Effect,
    Launch,
)
from poiesis.domain.decide.journal import KEPT_FOR_THE_END, MAX_SYSTEM_LOGS
from poiesis.domain.decide.stages import CLEAN_AGAIN, SOON, decide, decide_after, needs_observation, plan_of

__all__ = [
    "CLEAN_AGAIN",
    "KEPT_FOR_THE_END",
    "MAX_SYSTEM_LOGS",
    "SOON",
    "CreateDocuments",
    "CreateVolume",
    "Decision",
    "DeleteAll",
    "DeletePods",
    "Effect",
    "Launch",
    "decide",
    "decide_after",
    "needs_observation",
    "plan_of",
]
