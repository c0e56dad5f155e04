{{/* Checks that the schema cannot express. */}}
{{- define "poiesis.validate" -}}
{{- range $name := list "mongodb" "redis" -}}
{{- $server := index $.Values $name -}}
{{- if not (or $server.bundled $server.uri $server.existingSecret) -}}
{{- fail (printf "\n%s is required: set %s.existingSecret (a Secret with the connection string), %s.uri, or %s.bundled=true for a small one for evaluation." (ternary "MongoDB" "Redis" (eq $name "mongodb")) $name $name $name) -}}
{{- end -}}
{{- if and $server.bundled (or $server.uri $server.existingSecret) -}}
{{- fail (printf "\n%s.bundled brings its own connection string: leave %s.uri and %s.existingSecret empty, or set %s.bundled=false." $name $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.api.auth.methods (not .Values.api.auth.existingSecret) -}}
{{- fail "\napi.auth.methods requires api.auth.existingSecret, a Secret with the credentials file (see `poiesis hash-secret`)." -}}
{{- end -}}
{{- $cache := .Values.filer.cache -}}
{{- if and $cache.hostPath $cache.existingClaim -}}
{{- fail "\nfiler.cache: set hostPath or existingClaim, not both." -}}
{{- end -}}
{{- if and $cache.subPath (not $cache.existingClaim) -}}
{{- fail "\nfiler.cache.subPath requires filer.cache.existingClaim." -}}
{{- end -}}
{{- if and $cache.hostPath (or .Values.openshift (eq .Values.tasks.podSecurity "restricted")) -}}
{{- fail "\nfiler.cache.hostPath is not permitted by Pod Security `restricted` (tasks.podSecurity, OpenShift): use filer.cache.existingClaim." -}}
{{- end -}}
{{- range $name, $_ := .Values.settings -}}
{{- if has $name (list "POIESIS_MONGO_URI" "POIESIS_REDIS_URI") -}}
{{- fail (printf "\nsettings.%s: connection strings contain passwords and must not be in a ConfigMap: use mongodb.existingSecret and redis.existingSecret." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
