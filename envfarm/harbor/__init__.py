"""`harbor:` - task folders of Harbor (Terminal-Bench's format) as environments, as they are.

hello/
  task.toml               limits and sizes (`settings`)
  instruction.md          what the agent is told
  environment/Dockerfile  how its box begins (`dockerfile`)
  tests/test.sh           what judges it, and what belongs to that (`runner`)
  solution/solve.sh       the oracle (`env`)
"""
