"""The formats by the names of `data.agent_template`; hermes is the chat template's own and stands in `hermes.py`."""

from harness.data.config import AgentTemplate
from harness.data.template.agent import glm, qwen, react, toolbench
from harness.data.template.agent.agent_format import AgentFormat

FORMATS: dict[AgentTemplate, AgentFormat] = {
    AgentTemplate.qwen_en: qwen.EN,
    AgentTemplate.qwen_zh: qwen.ZH,
    AgentTemplate.qwen_en_parallel: qwen.EN_PARALLEL,
    AgentTemplate.qwen_zh_parallel: qwen.ZH_PARALLEL,
    AgentTemplate.react_en: react.EN,
    AgentTemplate.react_zh: react.ZH,
    AgentTemplate.toolbench: toolbench.TOOLBENCH,
    AgentTemplate.glm4: glm.GLM4,
    AgentTemplate.glm4_5: glm.GLM4_5,
}
