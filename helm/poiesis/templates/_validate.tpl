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
{{- $auth := .Values.api.auth -}}
{{- if not (or $auth.methods $auth.allowAnonymous) -}}
{{- fail "\nauthentication is required: set api.auth.methods, or api.auth.allowAnonymous=true to give everyone who can reach the API full access." -}}
{{- end -}}
{{- if and (or (has "basic" $auth.methods) (has "bearer" $auth.methods)) (not $auth.existingSecret) -}}
{{- fail "\napi.auth.methods basic and bearer require api.auth.existingSecret, a Secret with the credentials file (see `poiesis hash-secret`)." -}}
{{- end -}}
{{- if ne (has "oidc" $auth.methods) (not (empty $auth.issuers)) -}}
{{- fail "\napi.auth.issuers and the method oidc in api.auth.methods require each other." -}}
{{- end -}}
{{- range $auth.issuers -}}
{{- if hasKey . "client_secret" -}}
{{- fail "\napi.auth.issuers must not contain secrets: put client_secret into a Secret, name it in api.auth.issuersSecret, and set client_secret_file." -}}
{{- end -}}
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
{{- $tasks := .Values.tasks -}}
{{- if and $tasks.onDemandAfter (ge (int $tasks.onDemandAfter) (int $tasks.maxAttempts)) -}}
{{- fail (printf "\ntasks.onDemandAfter %v must be less than tasks.maxAttempts (%v), so that an attempt is left for on-demand nodes." $tasks.onDemandAfter $tasks.maxAttempts) -}}
{{- end -}}
{{- range $name, $_ := .Values.settings -}}
{{- if has $name (list "POIESIS_MONGO_URI" "POIESIS_REDIS_URI") -}}
{{- fail (printf "\nsettings.%s: connection strings contain passwords and must not be in a ConfigMap: use mongodb.existingSecret and redis.existingSecret." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
