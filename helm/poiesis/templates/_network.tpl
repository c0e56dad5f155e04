{{/* NetworkPolicies of components. All take (dict "root" $ "component" "torc"). */}}

{{/* The pods of this release that use its bundled servers. */}}
{{- define "poiesis.peers.roles" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: {{ include "poiesis.name" . }}
      app.kubernetes.io/instance: {{ .Release.Name }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [api, torc, tif, texam, tof, monitor, notifier, flower, doctor]}
{{- end -}}

{{- define "poiesis.peers.tasks" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ include "poiesis.tasks.namespace" . }}
  podSelector:
    matchLabels:
      {{- include "poiesis.tasks.selector" . | nindent 6 }}
{{- end -}}

{{/* Every pod except those of tasks, and sources outside the cluster. */}}
{{- define "poiesis.peers.allButTasks" -}}
- namespaceSelector: {}
  podSelector:
    matchExpressions:
      - {key: poiesis/task-id, operator: DoesNotExist}
- ipBlock: {cidr: 0.0.0.0/0}
- ipBlock: {cidr: "::/0"}
{{- end -}}

{{/* "ingress": the rules; without rules all connections are denied. */}}
{{- define "poiesis.networkPolicy" -}}
{{- if .root.Values.networkPolicy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "poiesis.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "poiesis.selector" . | nindent 6 }}
  policyTypes: [Ingress{{ if .noEgress }}, Egress{{ end }}]
  {{- $metricsFrom := ternary .root.Values.networkPolicy.metricsFrom list (has .component (list "api" "torc" "tif" "texam" "tof" "monitor" "notifier")) }}
  {{- if or .ingress $metricsFrom }}
  ingress:
    {{- with .ingress }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $metricsFrom }}
    - from:
        {{- toYaml . | nindent 8 }}
      ports:
        - {protocol: TCP, port: health}
    {{- end }}
  {{- else }}
  ingress: []
  {{- end }}
  {{- if .noEgress }}
  egress: []
  {{- end }}
{{- end -}}
{{- end -}}
