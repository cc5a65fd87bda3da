#!/bin/bash
cat > greet.py <<'END'
def greet(name: str) -> str:
    return f"Hello, {name.strip()}!"
END
