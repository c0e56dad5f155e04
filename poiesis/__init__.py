"""Poiesis: a Kubernetes-native GA4GH Task Execution Service (TES 1.1)."""

__version__ = "0.1.0"
