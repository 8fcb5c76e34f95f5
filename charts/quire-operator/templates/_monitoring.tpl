{{/* "true" where a switch is on: list of the switch and the root. */}}
{{- define "quire-operator.isOn" -}}
{{- $switch := index . 0 -}}
{{- $there := (index . 1).Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}
{{- if or (eq $switch "enabled") (and (eq $switch "auto") $there) -}}true{{- end -}}
{{- end -}}

{{/* Labels of what the Prometheus operator selects. */}}
{{- define "quire-operator.monitoringLabels" -}}
{{- merge (include "quire-operator.labels" . | fromYaml) .Values.monitoring.labels | toYaml -}}
{{- end -}}
