{{/* Service accounts and what they may do. All take (dict "root" $ "component" "torc"), roles also "rules". */}}

{{- define "poiesis.serviceAccount" -}}
{{- $given := (index .root.Values .component).serviceAccount -}}
{{- if $given.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "poiesis.serviceAccount.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
  {{- with $given.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
# Pods ask for the token themselves.
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* Role and binding stand where tasks run, and nowhere else: nothing is asked of the cluster as a whole. */}}
{{- define "poiesis.role" -}}
{{- if .root.Values.rbac.create -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "poiesis.component.name" . }}
  namespace: {{ include "poiesis.tasks.namespace" .root }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "poiesis.component.name" . }}
  namespace: {{ include "poiesis.tasks.namespace" .root }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "poiesis.component.name" . }}
subjects:
  - kind: ServiceAccount
    name: {{ include "poiesis.serviceAccount.name" . }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
{{- end -}}

{{/* Of roles that launch pods (takes verbs of pods and volumes): the pods, their logs, and the ConfigMap that delivers the launcher,
     whose name is its content's hash. Deleting undoes what a lost race made in vain. */}}
{{- define "poiesis.rules.launching" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: {{ toJson .pods }}
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: {{ toJson .volumes }}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, get]
{{- end -}}
