"""Models behind OpenAI's API: the thread that answers, what bodies may ask, what they get, the pages.

bodies.py reads a request, prompts.py makes tokens of it, worker.py answers it, responses.py writes what
comes, app.py ties them together, server.py listens.
"""
