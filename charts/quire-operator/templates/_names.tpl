{{/* Name of everything: the release's, with -operator where it does not say so itself. */}}
{{- define "quire-operator.name" -}}
{{- if contains "operator" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-operator" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "quire-operator.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}

{{- define "quire-operator.selector" -}}
app.kubernetes.io/name: quire-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quire-operator.labels" -}}
{{ include "quire-operator.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: quire
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
