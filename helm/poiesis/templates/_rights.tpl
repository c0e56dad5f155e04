{{/* Service accounts and their permissions. All take (dict "root" $ "component" "torc"), roles also "rules". */}}

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
# Pods mount the token explicitly.
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* Role and binding in the namespace of tasks. The only cluster role is that of rbac.readNodes. */}}
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

{{/* Rules of roles that launch pods (takes verbs of pods and volumes): pods, their logs, and the ConfigMap with the launcher, which is
     named by its hash. They delete what they created in a lost race. */}}
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
