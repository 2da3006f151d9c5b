"""finetune board: recipes, runs and commands in a browser, for who doesn't live in a terminal.

workspace.py knows the files, jobs.py the commands that run, actions.py which command a form is, completion.py
and checking.py what the editor says, pages.py draws, app.py ties them together, server.py listens. What takes
time is a `finetune` process of its own, which outlives the board; the rest loads no torch.
"""
