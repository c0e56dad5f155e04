{{/* The settings of all roles, as variables. Secrets are mounted as files instead (see poiesis.pod.volumes). */}}
{{- define "poiesis.config" -}}
{{- $v := .Values -}}
{{- $c := dict -}}
{{- $host := ternary (printf "[%s]" $v.listenHost) $v.listenHost (contains ":" $v.listenHost) -}}
{{- $_ := set $c "POIESIS_LISTEN" (printf "%s:%d" $host (int $v.ports.health)) -}}
{{- $_ := set $c "POIESIS_KUBERNETES__POKE_LISTEN" (printf "%s:%d" $host (int $v.ports.poke)) -}}
{{- $_ := set $c "POIESIS_API__HOST" $v.listenHost -}}
{{- $_ := set $c "POIESIS_API__PORT" $v.ports.api -}}
{{- $_ := set $c "POIESIS_API__WORKERS" $v.api.workers -}}
{{- $_ := set $c "POIESIS_API__MAX_BODY_BYTES" $v.api.maxBodyBytes -}}
{{- $_ := set $c "POIESIS_API__MAX_CONNECTIONS" $v.api.maxConnections -}}
{{- $_ := set $c "POIESIS_API__MAX_CONNECTIONS_PER_ADDRESS" $v.api.maxConnectionsPerAddress -}}
{{- $_ := set $c "POIESIS_API__MAX_STREAMS" $v.api.maxStreams -}}
{{- $_ := set $c "POIESIS_API__MAX_STREAMS_PER_USER" $v.api.maxStreamsPerUser -}}
{{- $_ := set $c "POIESIS_API__KEY_LIFETIME" $v.api.auth.keyLifetime -}}
{{- $_ := set $c "POIESIS_API__DASHBOARD__ENABLED" $v.api.dashboard.enabled -}}
{{- $tls := and $v.ingress.enabled $v.ingress.tls $v.ingress.host -}}
{{- $_ := set $c "POIESIS_API__DASHBOARD__URL" ($v.api.dashboard.url | default (ternary (printf "https://%s" $v.ingress.host) "" (not (empty $tls)))) -}}
{{- $_ := set $c "POIESIS_API__DASHBOARD__SESSION_LIFETIME" $v.api.dashboard.sessionLifetime -}}
{{- $_ := set $c "POIESIS_API__CLIENT_SAFE_STATES" $v.api.clientSafeStates -}}
{{- $_ := set $c "POIESIS_API__QUEUED_AS_INITIALIZING" $v.api.queuedAsInitializing -}}
{{- $_ := set $c "POIESIS_API__PREEMPTED_AS_SYSTEM_ERROR" $v.api.preemptedAsSystemError -}}
{{- $_ := set $c "POIESIS_API__CORS_ORIGINS" $v.api.corsOrigins -}}
{{- $_ := set $c "POIESIS_API__TRUSTED_PROXIES" $v.api.trustedProxies -}}
{{- $_ := set $c "POIESIS_API__AUDIT" $v.api.audit -}}
{{- range $field, $value := $v.api.limits -}}{{- $_ := set $c (printf "POIESIS_API__LIMITS__%s" (snakecase $field | upper)) $value -}}{{- end -}}
{{- $service := include "poiesis.component.name" (dict "root" . "component" "api") -}}
{{- $inNamespace := printf "%s.%s" $service .Release.Namespace -}}
{{- $inCluster := printf "%s.svc.%s" $inNamespace (trimSuffix "." $v.clusterDomain) -}}
{{- $hosts := list $service $inNamespace (printf "%s.svc" $inNamespace) $inCluster $v.ingress.host $v.route.host -}}
{{- $_ := set $c "POIESIS_API__ALLOWED_HOSTS" (concat $hosts $v.api.allowedHosts | compact | uniq) -}}
{{- $_ := set $c "POIESIS_LOG_LEVEL" $v.logLevel -}}
{{- $_ := set $c "POIESIS_TRACING__ENDPOINT" $v.tracing.endpoint -}}
{{- $_ := set $c "POIESIS_TRACING__RATIO" $v.tracing.ratio -}}
{{- $_ := set $c "POIESIS_RETENTION" $v.retention -}}
{{- $_ := set $c "POIESIS_EVENTS_RETENTION" $v.eventsRetention -}}
{{- $_ := set $c "POIESIS_USAGE_TAGS" (toJson ($v.usageTags | default list)) -}}
{{- $_ := set $c "POIESIS_MONGO_DATABASE" $v.mongodb.database -}}
{{- $_ := set $c "POIESIS_SERVICE__ID" $v.service.id -}}
{{- $_ := set $c "POIESIS_SERVICE__NAME" $v.service.name -}}
{{- $_ := set $c "POIESIS_SERVICE__DESCRIPTION" $v.service.description -}}
{{- $_ := set $c "POIESIS_SERVICE__ORGANIZATION_NAME" $v.service.organizationName -}}
{{- $_ := set $c "POIESIS_SERVICE__ORGANIZATION_URL" $v.service.organizationUrl -}}
{{- $_ := set $c "POIESIS_SERVICE__CONTACT_URL" $v.service.contactUrl -}}
{{- $_ := set $c "POIESIS_SERVICE__DOCUMENTATION_URL" $v.service.documentationUrl -}}
{{- $_ := set $c "POIESIS_SERVICE__ENVIRONMENT" $v.service.environment -}}
{{- $_ := set $c "POIESIS_SERVICE__STORAGE" $v.service.storage -}}
{{- $_ := set $c "POIESIS_SERVICE__GPU_TYPES" $v.service.gpuTypes -}}
{{- $_ := set $c "POIESIS_SERVICE__ZONES" $v.service.zones -}}
{{- /* limits and durations */ -}}
{{- $_ := set $c "POIESIS_POLICY__LIMITS__MAX_CPU_CORES" $v.tasks.limits.cpuCores -}}
{{- $_ := set $c "POIESIS_POLICY__LIMITS__MAX_RAM_GB" $v.tasks.limits.ramGb -}}
{{- $_ := set $c "POIESIS_POLICY__LIMITS__MAX_DISK_GB" $v.tasks.limits.diskGb -}}
{{- $_ := set $c "POIESIS_POLICY__LIMITS__MAX_SHM_GB" $v.tasks.limits.shmGb -}}
{{- $_ := set $c "POIESIS_POLICY__DEFAULT_TIME_LIMIT" $v.tasks.timeLimit.default -}}
{{- $_ := set $c "POIESIS_POLICY__MAX_TIME_LIMIT" $v.tasks.timeLimit.max -}}
{{- $_ := set $c "POIESIS_POLICY__MAX_ATTEMPTS" $v.tasks.maxAttempts -}}
{{- $_ := set $c "POIESIS_POLICY__RETRY_DELAY" $v.tasks.retryDelay -}}
{{- $_ := set $c "POIESIS_POLICY__RETRY_STARTED" $v.tasks.retryStarted -}}
{{- $_ := set $c "POIESIS_POLICY__SHOW_PREEMPTED" $v.tasks.showPreempted -}}
{{- $_ := set $c "POIESIS_POLICY__LAYOUT" $v.tasks.layout -}}
{{- $_ := set $c "POIESIS_POLICY__GROUP_MAY_CANCEL" $v.tasks.groupMayCancel -}}
{{- $_ := set $c "POIESIS_POLICY__TAIL_BYTES" $v.tasks.tailBytes -}}
{{- $_ := set $c "POIESIS_POLICY__GRACE" $v.tasks.grace -}}
{{- range $name, $value := $v.tasks.deadlines -}}{{- $_ := set $c (printf "POIESIS_POLICY__%s_DEADLINE" (snakecase $name | upper)) $value -}}{{- end -}}
{{- $_ := set $c "POIESIS_POLICY__KEEP" $v.tasks.keep -}}
{{- if not (kindIs "invalid" $v.tasks.volume.defaultSizeGb) -}}
{{- $_ := set $c "POIESIS_POLICY__DEFAULT_DISK_BYTES" (printf "%.0f" (mulf 1000000000 $v.tasks.volume.defaultSizeGb)) -}}
{{- end -}}
{{- $_ := set $c "POIESIS_POLICY__ON_DEMAND_AFTER" $v.tasks.onDemandAfter -}}
{{- /* admission */ -}}
{{- $a := "POIESIS_ADMISSION__" -}}
{{- range $name, $quota := dict "SITE" $v.admission.site "USER" $v.admission.user "GROUP" $v.admission.group -}}
{{- range $field, $value := fromJson (include "poiesis.quota" $quota) -}}
{{- $_ := set $c (printf "%s%s__%s" $a $name (upper $field)) $value -}}
{{- end -}}
{{- end -}}
{{- range $name, $quotas := dict "USERS" $v.admission.users "GROUPS" $v.admission.groups "CLASSES" $v.admission.classes -}}
{{- $found := dict -}}
{{- range $key, $quota := $quotas -}}{{- $_ := set $found $key (fromJson (include "poiesis.quota" $quota)) -}}{{- end -}}
{{- $_ := set $c (print $a $name) $found -}}
{{- end -}}
{{- $_ := set $c (print $a "DEFAULT_CLASS") $v.admission.defaultClass -}}
{{- $_ := set $c (print $a "HALF_LIFE") $v.admission.halfLife -}}
{{- $_ := set $c (print $a "AGING") $v.admission.aging -}}
{{- $_ := set $c (print $a "RESERVE_AFTER") $v.admission.reserveAfter -}}
{{- /* where and how tasks run */ -}}
{{- $k := "POIESIS_KUBERNETES__" -}}
{{- $_ := set $c (print $k "NAMESPACE") (include "poiesis.tasks.namespace" .) -}}
{{- $_ := set $c (print $k "INSTANCE") (include "poiesis.tasks.instance" .) -}}
{{- $_ := set $c (print $k "OWNER") (include "poiesis.owner.name" .) -}}
{{- $_ := set $c (print $k "IMAGE") (include "poiesis.image" .) -}}
{{- $_ := set $c (print $k "PULL_POLICY") $v.tasks.imagePullPolicy -}}
{{- $_ := set $c (print $k "FILER_PULL_POLICY") ($v.filer.imagePullPolicy | default $v.image.pullPolicy) -}}
{{- $_ := set $c (print $k "PULL_SECRETS") (concat $v.imagePullSecrets $v.tasks.imagePullSecrets | uniq) -}}
{{- $_ := set $c (print $k "IMAGE_PULL_SECRETS") $v.imagePullSecrets -}}
{{- /* built by hand to keep the order: it decides between the groups of a user */ -}}
{{- $bindings := list -}}
{{- range $v.tasks.bindings -}}
{{- $fields := dict -}}
{{- range $field, $value := omit . "for" -}}{{- $_ := set $fields (snakecase $field) $value -}}{{- end -}}
{{- $bindings = append $bindings (printf "%s:%s" (toJson .for) (toJson $fields)) -}}
{{- end -}}
{{- $_ := set $c (print $k "BINDINGS") (ternary (printf "{%s}" (join "," $bindings)) "" (not (empty $bindings))) -}}
{{- $_ := set $c (print $k "BOUND_FILE_SECRETS") $v.filer.boundFileSecrets -}}
{{- $_ := set $c (print $k "DELIVERY") $v.tasks.launcher.delivery -}}
{{- $_ := set $c (print $k "ARCHITECTURE") $v.tasks.launcher.architecture -}}
{{- $_ := set $c (print $k "POD_SECURITY") $v.tasks.podSecurity -}}
{{- $_ := set $c (print $k "RUN_AS_USER") $v.tasks.runAsUser -}}
{{- $_ := set $c (print $k "RUN_AS_GROUP") $v.tasks.runAsGroup -}}
{{- $_ := set $c (print $k "FS_GROUP") (ternary "none" $v.tasks.fsGroup (or $v.openshift (kindIs "invalid" $v.tasks.fsGroup))) -}}
{{- $_ := set $c (print $k "NET_RAW") $v.tasks.netRaw -}}
{{- $_ := set $c (print $k "RESOLV_CONF") $v.filer.resolvConf -}}
{{- $_ := set $c (print $k "READ_ONLY_ROOT") $v.tasks.readOnlyRootFilesystem -}}
{{- $_ := set $c (print $k "SERVICE_ACCOUNT") $v.tasks.serviceAccountName -}}
{{- $_ := set $c (print $k "STORAGE_CLASS") $v.tasks.volume.storageClass -}}
{{- $_ := set $c (print $k "ACCESS_MODE") $v.tasks.volume.accessMode -}}
{{- $_ := set $c (print $k "DEFAULT_CPU_CORES") $v.tasks.defaults.cpuCores -}}
{{- $_ := set $c (print $k "DEFAULT_RAM_GB") $v.tasks.defaults.ramGb -}}
{{- $_ := set $c (print $k "CPU_LIMIT") $v.tasks.cpuLimit -}}
{{- $_ := set $c (print $k "EPHEMERAL_STORAGE_LIMIT") $v.tasks.ephemeralStorageLimit -}}
{{- $_ := set $c (print $k "MIN_REQUESTS") $v.tasks.minRequests -}}
{{- $_ := set $c (print $k "ZONE_LABEL") $v.tasks.zoneLabel -}}
{{- $_ := set $c (print $k "GPU_RESOURCE") $v.tasks.gpu.resource -}}
{{- $_ := set $c (print $k "GPU_TYPE_LABEL") $v.tasks.gpu.typeLabel -}}
{{- range $name, $placement := dict "PREEMPTIBLE" $v.tasks.preemptible "ON_DEMAND" $v.tasks.onDemand "GPU" $v.tasks.gpu.placement -}}
{{- range $field, $value := fromJson (include "poiesis.placement" $placement) -}}
{{- $_ := set $c (printf "%s%s__%s" $k $name (upper $field)) $value -}}
{{- end -}}
{{- end -}}
{{- range $name, $classes := dict "NODE_CLASSES" $v.tasks.nodeClasses "SERVICE_CLASSES" $v.tasks.serviceClasses -}}
{{- $found := dict -}}
{{- range $class, $placement := $classes -}}{{- $_ := set $found $class (fromJson (include "poiesis.placement" $placement)) -}}{{- end -}}
{{- $_ := set $c (print $k $name) $found -}}
{{- end -}}
{{- $_ := set $c (print $k "PRIORITY_CLASSES") $v.tasks.priorityClasses -}}
{{- $_ := set $c (print $k "DEFAULT_PRIORITY_CLASS") $v.tasks.defaultPriorityClass -}}
{{- $_ := set $c (print $k "QUEUE") $v.tasks.queue -}}
{{- $_ := set $c (print $k "QUEUES") $v.tasks.queues -}}
{{- $_ := set $c (print $k "DEFAULT_QUEUES") $v.tasks.defaultQueues -}}
{{- $_ := set $c (print $k "LABELS") $v.tasks.labels -}}
{{- $_ := set $c (print $k "ANNOTATIONS") $v.tasks.annotations -}}
{{- $_ := set $c (print $k "EXTRA_POD_SPEC") $v.tasks.extraPodSpec -}}
{{- $_ := set $c (print $k "WRITES_PER_SECOND") $v.tasks.writesPerSecond -}}
{{- $_ := set $c (print $k "READ_NODES") $v.rbac.readNodes -}}
{{- if $v.tasks.poke.enabled -}}
{{- $_ := set $c (print $k "POKE_ADDRESS") (include "poiesis.poke.address" .) -}}
{{- $_ := set $c (print $k "POKE_START") $v.tasks.poke.start -}}
{{- end -}}
{{- /* filers */ -}}
{{- $_ := set $c (print $k "FILER_ENV") $v.filer.env -}}
{{- $_ := set $c (print $k "FILER_ENV_SECRETS") $v.filer.envSecrets -}}
{{- $_ := set $c (print $k "FILER_FILE_SECRETS") $v.filer.fileSecrets -}}
{{- $_ := set $c (print $k "FILER_RUN_AS_USER") (ternary "none" $v.filer.runAsUser (or $v.openshift (kindIs "invalid" $v.filer.runAsUser))) -}}
{{- range $field, $at := dict "CPU_REQUEST" (list "requests" "cpu") "MEMORY_REQUEST" (list "requests" "memory") "CPU_LIMIT" (list "limits" "cpu") "MEMORY_LIMIT" (list "limits" "memory") -}}
{{- $_ := set $c (printf "%sFILER_RESOURCES__%s" $k $field) (index (index $v.filer.resources (first $at) | default dict) (last $at)) -}}
{{- end -}}
{{- $_ := set $c (print $k "CACHE_VOLUME__HOST_PATH") $v.filer.cache.hostPath -}}
{{- $_ := set $c (print $k "CACHE_VOLUME__CLAIM") $v.filer.cache.existingClaim -}}
{{- $_ := set $c (print $k "CACHE_VOLUME__SUB_PATH") $v.filer.cache.subPath -}}
{{- /* whole logs */ -}}
{{- range $field, $at := dict "CPU_REQUEST" (list "requests" "cpu") "MEMORY_REQUEST" (list "requests" "memory") "CPU_LIMIT" (list "limits" "cpu") "MEMORY_LIMIT" (list "limits" "memory") -}}
{{- $_ := set $c (printf "%sLOGS_RESOURCES__%s" $k $field) (index (index $v.logs.resources (first $at) | default dict) (last $at)) -}}
{{- end -}}
{{- if $v.logs.url -}}
{{- $l := "POIESIS_LOGS__" -}}
{{- $_ := set $c (print $l "URL") $v.logs.url -}}
{{- $_ := set $c (print $l "ENDPOINT") $v.logs.endpoint -}}
{{- $_ := set $c (print $l "REGION") $v.logs.region -}}
{{- $_ := set $c (print $l "VIRTUAL_STYLE") $v.logs.virtualStyle -}}
{{- $_ := set $c (print $l "CA_FILE") (ternary "/run/secrets/log-store/ca.crt" "" (not (empty $v.logs.caSecret))) -}}
{{- $_ := set $c (print $l "MAX_BYTES") $v.logs.maxBytes -}}
{{- $_ := set $c (print $l "INTERVAL") $v.logs.interval -}}
{{- $_ := set $c (print $l "BACKLOG_BYTES") $v.logs.backlogBytes -}}
{{- $_ := set $c (print $l "MAX_STALL") $v.logs.maxStall -}}
{{- $_ := set $c (print $l "FINISH") $v.logs.finish -}}
{{- $_ := set $c (print $k "LOGS_ENV_SECRETS") (list $v.logs.existingSecret | compact) -}}
{{- if $v.logs.caSecret -}}{{- $_ := set $c (print $k "LOGS_FILE_SECRETS") (dict $v.logs.caSecret "/run/secrets/log-store") -}}{{- end -}}
{{- $_ := set $c (print $k "LOGS_CLAIM") $v.logs.existingClaim -}}
{{- end -}}
{{- $f := "POIESIS_FILER__" -}}
{{- if or $v.filer.cache.hostPath $v.filer.cache.existingClaim -}}
{{- $_ := set $c (print $f "CACHE_BYTES") $v.filer.cache.maxBytes -}}
{{- $_ := set $c (print $f "CACHE_MIN_BYTES") $v.filer.cache.minBytes -}}
{{- end -}}
{{- /* built by hand to keep the order: the first endpoint is for buckets that no other lists */ -}}
{{- $endpoints := list -}}
{{- range $v.filer.s3 -}}
{{- $fields := dict -}}
{{- range $field, $value := omit . "name" -}}{{- $_ := set $fields (snakecase $field) $value -}}{{- end -}}
{{- $endpoints = append $endpoints (printf "%s:%s" (toJson .name) (toJson $fields)) -}}
{{- end -}}
{{- $_ := set $c (print $f "S3") (ternary (printf "{%s}" (join "," $endpoints)) "" (not (empty $endpoints))) -}}
{{- $_ := set $c (print $f "CLOUD") $v.filer.cloud -}}
{{- $_ := set $c (print $f "FILE_ROOTS") $v.filer.fileRoots -}}
{{- $_ := set $c (print $f "ALLOW_UNENCRYPTED_CREDENTIALS") $v.filer.allowUnencryptedCredentials -}}
{{- $_ := set $c (print $f "HTTP_PUT") $v.filer.httpPut -}}
{{- $_ := set $c (print $f "ALLOW_ADDRESSES") $v.filer.allowAddresses -}}
{{- $_ := set $c (print $f "CA_FILE") $v.filer.caFile -}}
{{- $_ := set $c (print $f "NETRC_FILE") $v.filer.netrcFile -}}
{{- $_ := set $c (print $f "SSH_KEY_FILE") $v.filer.sshKeyFile -}}
{{- $_ := set $c (print $f "KNOWN_HOSTS_FILE") $v.filer.knownHostsFile -}}
{{- $_ := set $c (print $f "DRS_TOKEN_FILE") $v.filer.drsTokenFile -}}
{{- $_ := set $c (print $f "DRS_HOSTS") $v.filer.drsHosts -}}
{{- $_ := set $c (print $f "RESOLVE_BEFORE_PROXY") $v.filer.resolveBeforeProxy -}}
{{- $_ := set $c (print $f "PARALLEL") $v.filer.parallel -}}
{{- $_ := set $c (print $f "MAX_FILES") $v.filer.maxFiles -}}
{{- $_ := set $c (print $f "MAX_FILE_BYTES") $v.filer.maxFileBytes -}}
{{- $_ := set $c (print $f "MAX_OUTPUT_BYTES") $v.filer.maxOutputBytes -}}
{{- /* webhooks */ -}}
{{- $_ := set $c "POIESIS_WEBHOOKS__MAX_PER_USER" $v.webhooks.maxPerUser -}}
{{- $_ := set $c "POIESIS_WEBHOOKS__ALLOW_HTTP" $v.webhooks.allowHttp -}}
{{- $_ := set $c "POIESIS_WEBHOOKS__ALLOW_ADDRESSES" $v.webhooks.allowAddresses -}}
{{- $_ := set $c "POIESIS_WEBHOOKS__CA_FILE" (ternary "/run/secrets/webhooks/ca.crt" "" (not (empty $v.webhooks.caSecret))) -}}
{{- range $name, $value := $v.settings -}}{{- $_ := set $c $name $value -}}{{- end -}}
{{- range $name := keys $c | sortAlpha -}}
{{- $value := index $c $name -}}
{{- if or (kindIs "bool" $value) (not (empty $value)) (and (not (kindIs "invalid" $value)) (not (kindIs "string" $value)) (not (kindIs "slice" $value)) (not (kindIs "map" $value))) }}
{{ $name }}: {{ include "poiesis.config.text" $value }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whole numbers without exponent or decimals; lists and maps as JSON. */}}
{{- define "poiesis.config.text" -}}
{{- if or (kindIs "slice" .) (kindIs "map" .) -}}
{{- toJson . | quote -}}
{{- else if and (kindIs "float64" .) (eq (float64 .) (floor .)) -}}
{{- printf "%.0f" . | quote -}}
{{- else -}}
{{- toString . | quote -}}
{{- end -}}
{{- end -}}

{{/* A quota with the names of the settings; 0 is a value. */}}
{{- define "poiesis.quota" -}}
{{- $found := dict -}}
{{- range $field, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $found (snakecase $field) $value -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* A placement with the names of the settings, without empty fields. */}}
{{- define "poiesis.placement" -}}
{{- $found := dict -}}
{{- range $field, $value := . -}}
{{- if or (kindIs "bool" $value) (not (empty $value)) -}}{{- $_ := set $found (snakecase $field) $value -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
