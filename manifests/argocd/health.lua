-- The health of an LLMService for Argo CD, from the conditions by which any kstatus reader knows it.
-- Goes into the ConfigMap argocd-cm as resource.customizations.health.serving.quire.dev_LLMService.
local health = {status = "Progressing", message = "the operator has not seen this spec yet"}
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local function holds(kind)
  return found[kind] ~= nil and found[kind].status == "True"
end

if found.Ready ~= nil then
  health.message = found.Ready.reason .. ": " .. (found.Ready.message or "")
end
if holds("Stalled") then
  health.status = "Degraded"
  health.message = found.Stalled.reason .. ": " .. (found.Stalled.message or "")
elseif holds("Reconciling") then
  health.status = "Progressing"
elseif holds("Ready") then
  health.status = "Healthy"
elseif obj.spec.suspend then
  health.status = "Suspended"
end
return health
