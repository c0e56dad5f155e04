{{/* Pods of the chart. All take (dict "root" $ "component" "torc"). */}}

{{/* The pod values of a component: its own over the defaults of `pods`, as JSON. */}}
{{- define "poiesis.pod.values" -}}
{{- $own := index .root.Values .component -}}
{{- $found := dict -}}
{{- range $key, $value := .root.Values.pods -}}
{{- $_ := set $found $key (ternary (index $own $key) $value (hasKey $own $key)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "poiesis.pod.metadata" -}}
{{- $pod := fromJson (include "poiesis.pod.values" .) -}}
labels:
  {{- include "poiesis.labels" . | nindent 2 }}
  {{- with $pod.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- /* restart pods when what they read at startup has changed */}}
  checksum/config: {{ include "poiesis.config" .root | sha256sum }}
  checksum/secrets: {{ list (pick .root.Values.mongodb "uri" "existingSecret" "existingSecretKey" "bundled" "auth") (pick .root.Values.redis "uri" "existingSecret" "existingSecretKey" "bundled" "auth") | toJson | sha256sum }}
  {{- with $pod.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "poiesis.pod.securityContext" -}}
{{- $context := .context -}}
{{- if .root.Values.openshift -}}{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" -}}{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* The fields of a pod's spec that are the same for every component. */}}
{{- define "poiesis.pod.common" -}}
{{- $pod := fromJson (include "poiesis.pod.values" .) -}}
enableServiceLinks: false
dnsConfig:
  options:  # by default a lost datagram costs five seconds
    - {name: timeout, value: "1"}
    - {name: attempts, value: "4"}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: {{ int $pod.terminationGracePeriodSeconds }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "poiesis.selector" (dict "root" $.root "component" $.component) | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Image, variables and mounts of a role's container. */}}
{{- define "poiesis.container.common" -}}
{{- $pod := fromJson (include "poiesis.pod.values" .) -}}
image: {{ include "poiesis.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "poiesis.pod.securityContext" (dict "root" .root "context" $pod.containerSecurityContext) | nindent 2 }}
envFrom:
  - configMapRef:
      name: {{ include "poiesis.config.name" .root }}
  {{- if and (eq .component "flower") .root.Values.flower.existingSecret }}
  - secretRef:
      name: {{ .root.Values.flower.existingSecret | quote }}
  {{- end }}
  {{- /* only the roles that read and delete whole logs */}}
  {{- if and .root.Values.logs.url .root.Values.logs.existingSecret (has .component (list "api" "monitor")) }}
  - secretRef:
      name: {{ .root.Values.logs.existingSecret | quote }}
  {{- end }}
env:
  - name: POIESIS_MONGO_URI_FILE
    value: /run/secrets/poiesis/mongo-uri
  - name: POIESIS_REDIS_URI_FILE
    value: /run/secrets/poiesis/redis-uri
  {{- with .env }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $pod.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml (index .root.Values .component).resources | nindent 2 }}
volumeMounts:
  - name: connections
    mountPath: /run/secrets/poiesis
    readOnly: true
  - name: tmp
    mountPath: /tmp
  {{- if and .root.Values.logs.url (has .component (list "api" "monitor")) }}
  {{- if .root.Values.logs.caSecret }}
  - name: log-store-ca
    mountPath: /run/secrets/log-store
    readOnly: true
  {{- end }}
  {{- if .root.Values.logs.existingClaim }}
  - name: log-store
    mountPath: {{ trimPrefix "file://" .root.Values.logs.url | quote }}
  {{- end }}
  {{- end }}
  {{- if and .root.Values.webhooks.caSecret (eq .component "notifier") }}
  - name: webhooks-ca
    mountPath: /run/secrets/webhooks
    readOnly: true
  {{- end }}
  {{- with .mounts }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $pod.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Connection strings are mounted as files: variables are shown by many tools and inherited by child processes. */}}
{{- define "poiesis.pod.volumes" -}}
{{- $pod := fromJson (include "poiesis.pod.values" .) -}}
- name: connections
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "poiesis.mongodb.secret" .root }}
          items:
            - key: {{ include "poiesis.mongodb.key" .root }}
              path: mongo-uri
      - secret:
          name: {{ include "poiesis.redis.secret" .root }}
          items:
            - key: {{ include "poiesis.redis.key" .root }}
              path: redis-uri
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if and .root.Values.logs.url (has .component (list "api" "monitor")) }}
{{- with .root.Values.logs.caSecret }}
- name: log-store-ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.logs.existingClaim }}
- name: log-store
  persistentVolumeClaim:
    claimName: {{ . | quote }}
{{- end }}
{{- end }}
{{- if and .root.Values.webhooks.caSecret (eq .component "notifier") }}
- name: webhooks-ca
  secret:
    secretName: {{ .root.Values.webhooks.caSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- with .volumes }}
{{ . }}
{{- end }}
{{- with $pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A role with a health server: TOrc, TIF, TExAM, TOF, the monitor, which use the Kubernetes API with their own service
     accounts, and the notifier, which does not use it. */}}
{{- define "poiesis.role.deployment" -}}
{{- include "poiesis.validate" .root -}}
{{- $own := index .root.Values .component -}}
{{- $pod := fromJson (include "poiesis.pod.values" .) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "poiesis.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
spec:
  replicas: {{ int $own.replicas }}
  selector:
    matchLabels:
      {{- include "poiesis.selector" . | nindent 6 }}
  template:
    metadata:
      {{- include "poiesis.pod.metadata" . | nindent 6 }}
    spec:
      {{- include "poiesis.pod.common" . | nindent 6 }}
      {{- with $own.serviceAccount }}
      serviceAccountName: {{ include "poiesis.serviceAccount.name" $ }}
      {{- end }}
      automountServiceAccountToken: {{ hasKey $own "serviceAccount" }}
      securityContext:
        {{- include "poiesis.pod.securityContext" (dict "root" .root "context" $pod.podSecurityContext) | nindent 8 }}
      containers:
        - name: {{ .component }}
          args: [{{ .component }}]
          {{- $threads := "" }}
          {{- with $own.threads }}
          {{- $threads = printf "- name: %s\n  value: %q" (ternary "POIESIS_MONITOR_THREADS" "POIESIS_ROLE_THREADS" (eq $.component "monitor")) (toString .) }}
          {{- end }}
          {{- include "poiesis.container.common" (merge (dict "env" $threads) .) | nindent 10 }}
          ports:
            - name: health
              containerPort: {{ .root.Values.ports.health }}
            {{- if eq .component "monitor" }}
            - name: poke
              containerPort: {{ .root.Values.ports.poke }}
            {{- end }}
          startupProbe:
            httpGet: {path: /healthz, port: health}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /healthz, port: health}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: health}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 3
      volumes:
        {{- include "poiesis.pod.volumes" . | nindent 8 }}
{{- end -}}

{{- define "poiesis.pdb" -}}
{{- $pdb := (index .root.Values .component).podDisruptionBudget -}}
{{- if $pdb.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "poiesis.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "poiesis.labels" . | nindent 4 }}
spec:
  {{- if hasKey $pdb "minAvailable" }}
  minAvailable: {{ $pdb.minAvailable }}
  {{- else }}
  maxUnavailable: {{ $pdb.maxUnavailable }}
  {{- end }}
  # pods that are not ready serve no requests: while the store is away they block no drain, which may be what brings it back
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "poiesis.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}
