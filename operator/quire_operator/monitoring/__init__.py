"""What there is to watch: PromQL, alerts and dashboards, as plain data."""
