# Loaded here, before any of our own configurations, so that these are registered whole: transformers imports it while
# it imports most anything else.
import transformers.models.auto.configuration_auto  # noqa: F401
