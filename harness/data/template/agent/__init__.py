"""How tools, the model's calls and their results become turns: one file a family of formats (`data.agent_template`)."""
