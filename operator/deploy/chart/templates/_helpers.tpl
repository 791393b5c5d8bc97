{{- define "migration.labels" -}}
app.kubernetes.io/name: migration-operator
app.kubernetes.io/part-of: migration
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* An image: the one that was named, or the part's name in the registry. */}}
{{- define "migration.image" -}}
{{- if .image }}{{ .image }}{{ else -}}
{{- with .root.Values.registry }}{{ trimSuffix "/" . }}/{{ end }}migration-{{ .part }}:{{ .root.Values.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}
