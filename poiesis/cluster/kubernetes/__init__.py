"""Tasks as pods: the Kubernetes side of `poiesis.ports.cluster`. Doors are `adapter.KubernetesCluster`, `leader.Election` and `settings`.

settings   what a site decides                     errors    the API server's answers as our errors, one table
labels     names, labels, selectors                client    HTTP: pool, time-outs, retries
objects    PVC, Secrets, launcher's ConfigMap      watch     list, watch, relist; feeds the cache
pods       the pod of a PodPlan                    cache     small projections of pods and PVCs, and what is known to be gone
placement  resources, nodes, tolerations           observe   a pod's JSON as domain.observed
records    closing records from messages and logs  leader    election by Lease
"""
