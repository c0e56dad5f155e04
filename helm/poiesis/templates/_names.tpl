{{/* Every name of the chart. Arguments of those that take more than the root: (dict "root" $ "component" "torc"). */}}

{{- define "poiesis.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough that every suffix below stays within 63 characters. */}}
{{- define "poiesis.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "poiesis.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "poiesis.component.name" -}}
{{- printf "%s-%s" (include "poiesis.fullname" .root) .component -}}
{{- end -}}

{{- define "poiesis.config.name" -}}{{ include "poiesis.fullname" . }}-config{{- end -}}

{{/* Owns all objects of tasks: when it is deleted, Kubernetes deletes them. */}}
{{- define "poiesis.owner.name" -}}{{ include "poiesis.fullname" . }}-tasks{{- end -}}

{{/* The name that the monitor uses: derived from the instance. */}}
{{- define "poiesis.lease.name" -}}{{ include "poiesis.tasks.instance" . }}-monitor{{- end -}}

{{/* Cluster-scoped, so it has the namespace. */}}
{{- define "poiesis.nodes.name" -}}
{{- printf "%s-%s" .Release.Namespace (include "poiesis.fullname" .) | trunc 57 | trimSuffix "-" -}}-nodes
{{- end -}}

{{- define "poiesis.serviceAccount.name" -}}
{{- $given := (index .root.Values .component).serviceAccount -}}
{{- $given.name | default (include "poiesis.component.name" .) -}}
{{- end -}}

{{- define "poiesis.tasks.namespace" -}}{{ .Values.tasks.namespace | default .Release.Namespace }}{{- end -}}

{{/* The label by which a service recognizes its tasks' objects; two releases may share a namespace for tasks. */}}
{{- define "poiesis.tasks.instance" -}}
{{- if .Values.tasks.instance -}}
{{- .Values.tasks.instance -}}
{{- else if eq (include "poiesis.tasks.namespace" .) .Release.Namespace -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s.%s" .Release.Namespace .Release.Name | trunc 63 | trimSuffix "-" | trimSuffix "." -}}
{{- end -}}
{{- end -}}

{{/* Fully qualified, with a trailing dot: resolvers query it once instead of trying each search domain first. */}}
{{- define "poiesis.poke.address" -}}
{{- printf "%s.%s.svc.%s.:%d" (include "poiesis.component.name" (dict "root" . "component" "monitor")) .Release.Namespace (trimSuffix "." .Values.clusterDomain) (int .Values.ports.poke) -}}
{{- end -}}

{{- define "poiesis.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Secret and key of the connection strings. */}}
{{- define "poiesis.mongodb.secret" -}}{{ .Values.mongodb.existingSecret | default (include "poiesis.component.name" (dict "root" . "component" "mongodb")) }}{{- end -}}
{{- define "poiesis.mongodb.key" -}}{{ ternary .Values.mongodb.existingSecretKey "uri" (not (empty .Values.mongodb.existingSecret)) }}{{- end -}}
{{- define "poiesis.redis.secret" -}}{{ .Values.redis.existingSecret | default (include "poiesis.component.name" (dict "root" . "component" "redis")) }}{{- end -}}
{{- define "poiesis.redis.key" -}}{{ ternary .Values.redis.existingSecretKey "uri" (not (empty .Values.redis.existingSecret)) }}{{- end -}}
