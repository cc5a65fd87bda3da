"""The trusted process that runs sessions, and its clients.

protocol.py      the requests and replies, and how errors travel
sessions.py      where a session lives: the event loop, a thread, or a process (process.py, pipe.py, zygote.py)
boxes.py         the boxes of a session, wherever it lives
catalogue.py     which environments are served; brought.py: those that clients bring
seats.py         what a connection holds; how many there may be; forks that wait for a connection
websocket.py     frames (RFC 6455); http.py: enough of HTTP/1.1
server.py        one connection; openenv.py: OpenEnv's JSON; routes.py, schemas.py, mcp.py: plain HTTP and tools
serving.py       a worker behind a socket; __main__.py: the command
client.py        `AsyncSession`; pool.py: `WorkerPool`, workers as child processes; local.py: `LocalPool`, none
lifetime.py      nobody outlives its owner
"""
