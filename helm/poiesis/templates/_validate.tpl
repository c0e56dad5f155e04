{{/* What a schema cannot say, in sentences. */}}
{{- define "poiesis.validate" -}}
{{- range $name := list "mongodb" "redis" -}}
{{- $server := index $.Values $name -}}
{{- if not (or $server.bundled $server.uri $server.existingSecret) -}}
{{- fail (printf "\nPoiesis needs %s. Give %s.existingSecret (a Secret with the connection string) or %s.uri; or %s.bundled=true for a small one to try things out." (ternary "MongoDB" "Redis" (eq $name "mongodb")) $name $name $name) -}}
{{- end -}}
{{- if and $server.bundled (or $server.uri $server.existingSecret) -}}
{{- fail (printf "\n%s.bundled is for trying things out and comes with a connection string of its own: leave %s.uri and %s.existingSecret empty, or set %s.bundled=false." $name $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.api.auth.methods (not .Values.api.auth.existingSecret) -}}
{{- fail "\napi.auth.methods is set: give api.auth.existingSecret too, a Secret with the credentials file (see `poiesis hash-secret`)." -}}
{{- end -}}
{{- $cache := .Values.filer.cache -}}
{{- if and $cache.hostPath $cache.existingClaim -}}
{{- fail "\nfiler.cache: give hostPath or existingClaim, not both." -}}
{{- end -}}
{{- if and $cache.subPath (not $cache.existingClaim) -}}
{{- fail "\nfiler.cache.subPath is a directory of a claim's volume: give filer.cache.existingClaim too." -}}
{{- end -}}
{{- if and $cache.hostPath (or .Values.openshift (eq .Values.tasks.podSecurity "restricted")) -}}
{{- fail "\nfiler.cache.hostPath: pods that meet Pod Security `restricted` (tasks.podSecurity, OpenShift) have no directory of the node; use filer.cache.existingClaim." -}}
{{- end -}}
{{- range $name, $_ := .Values.settings -}}
{{- if has $name (list "POIESIS_MONGO_URI" "POIESIS_REDIS_URI") -}}
{{- fail (printf "\nsettings.%s: connection strings hold passwords and do not belong into a ConfigMap; use mongodb.existingSecret and redis.existingSecret." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
