"""What a task claims of quotas, at their borders."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.decide.admission import claim_of
from poiesis.domain.decide.endings import with_more_memory
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.fair_share import Ledger
from poiesis.domain.quotas import AdmissionRules, Amount, Claim, Quota
from poiesis.domain.task import Resources, Task
from tests.unit.domain.samples import POLICY, spec, stored

ONE_DECIMAL = st.integers(1, 10**5).map(lambda tenths: tenths / 10)
THREE_DECIMALS = st.integers(1, 10**7).map(lambda thousandths: thousandths / 1000)
SIZES = ONE_DECIMAL | THREE_DECIMALS | st.floats(1e-6, 1e6)


def asking(cpu_cores: float, ram_gb: float) -> Task:
    parameters = {"gpu": "2"}
    return stored(
        spec(volumes=("/scratch",), resources=Resources(cpu_cores, ram_gb=ram_gb, backend_parameters=parameters))
    )


def claimed(task: Task, rules: AdmissionRules) -> Claim:
    return claim_of(task, plan_of(task, POLICY), rules)


@given(cores=SIZES, ram_gb=SIZES)
def test_a_task_that_asks_for_all_that_a_quota_allows_fits(cores: float, ram_gb: float):
    cap = Quota(max_tasks=1, max_cpu_cores=cores, max_ram_gb=ram_gb, max_gpus=2, max_volumes=1)
    rules = AdmissionRules(site=cap, user=cap)
    claim = claimed(asking(cores, ram_gb), rules)
    assert Ledger(rules).never_fits(claim) is None
    assert claim.amount == Amount(*(most or 0 for most in cap.caps))


@given(most=SIZES, part=st.floats(0.51, 0.99))
def test_a_retry_with_all_memory_that_a_quota_allows_fits(most: float, part: float):
    rules = AdmissionRules(user=Quota(max_ram_gb=most))
    policy = replace(POLICY, admission=rules)
    task = asking(1.0, most * part)
    task = with_more_memory(replace(task, claim=claimed(task, rules)), policy)
    assert Ledger(rules).never_fits(claimed(task, rules)) is None


@given(number=ONE_DECIMAL | THREE_DECIMALS)
def test_a_size_is_as_it_is_written(number: float):
    claim = claimed(asking(number, number), AdmissionRules())
    assert claim.amount.millicores == round(number * 1000)
    assert claim.amount.memory_bytes == round(number * 1000) * 10**6
