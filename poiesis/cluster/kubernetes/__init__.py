"""Tasks as pods: the Kubernetes side of `poiesis.ports.cluster`. Entry points: `adapter.KubernetesCluster`, `leader.Election`,
`pokes.PokeListener` and `settings`.

settings   a site's settings                       errors    responses of the API server as errors, one table
labels     labels and selectors                    client    HTTP: pool, time-outs, retries
objects    PVC, Secrets, launcher's ConfigMap      watch     list, watch, relist; feeds the cache
pods       the pod of a PodPlan                    cache     small projections of pods and PVCs, names of deleted ones
placement  resources, nodes, tolerations           observe   a pod's projection as domain.observed
records    closing records from messages and logs  leader    election by Lease
delivery   the launcher's ConfigMap, the owner     pokes     the listener for pokes, and its address for launchers
name_resolution  the filers' hosts and resolv.conf
"""
