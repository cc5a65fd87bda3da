"""The trusted process that runs sessions, and its clients.

protocol.py    the requests and replies, and how errors travel
websocket.py   WebSocket frames (RFC 6455); http.py: enough of HTTP/1.1
openenv.py     the same requests and replies as OpenEnv's JSON
sessions.py    where a session lives: the event loop, a thread, or a process (process.py, zygote.py)
server.py      one connection; mcp.py: JSON-RPC
client.py      `AsyncSession`; pool.py: `WorkerPool`, workers as child processes
"""
