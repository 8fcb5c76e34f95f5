{{/* What the operator does with LLMServices and their children, and no more. */}}
{{- define "quire-operator.rules" -}}
- apiGroups: [serving.quire.dev]
  resources: [llmservices]
  verbs: [get, list, watch]
- apiGroups: [serving.quire.dev]
  resources: [llmservices/status]
  verbs: [patch]
# owner references with blockOwnerDeletion need this where OwnerReferencesPermissionEnforcement is on
- apiGroups: [serving.quire.dev]
  resources: [llmservices/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- if .Values.planReadsTokens }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- end -}}
