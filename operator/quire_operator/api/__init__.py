"""The LLMService API: one set of models, from which the CRD's schema and the operator's parsing both come."""

from quire_operator.api.crd import crd_manifest, custom_resource_definition
from quire_operator.api.llmservice import API_VERSION, GROUP, KIND, PLURAL, VERSION, LLMService, Metadata, Spec
from quire_operator.api.model_source import ClaimSource, HubSource, ImageSource, ModelSource, parse_source
from quire_operator.api.parsing import InvalidLLMServiceError, parse_llmservice
from quire_operator.api.status import Advice, CacheStatus, Condition, ModelStatus, PlanStatus, Status

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Advice",
    "CacheStatus",
    "ClaimSource",
    "Condition",
    "HubSource",
    "ImageSource",
    "InvalidLLMServiceError",
    "LLMService",
    "Metadata",
    "ModelSource",
    "ModelStatus",
    "PlanStatus",
    "Spec",
    "Status",
    "crd_manifest",
    "custom_resource_definition",
    "parse_llmservice",
    "parse_source",
]
