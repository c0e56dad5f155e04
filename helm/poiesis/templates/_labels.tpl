{{/* All take (dict "root" $ "component" "torc"). */}}

{{- define "poiesis.selector" -}}
app.kubernetes.io/name: {{ include "poiesis.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "poiesis.labels" -}}
{{- with .root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "poiesis.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: poiesis
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The labels of task pods, as set by the service (takes the root). */}}
{{- define "poiesis.tasks.selector" -}}
app.kubernetes.io/instance: {{ include "poiesis.tasks.instance" . }}
app.kubernetes.io/component: task
app.kubernetes.io/managed-by: poiesis
{{- end -}}
