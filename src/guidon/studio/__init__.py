"""``guidon studio``: a local page that shows what guidance does, and the engine behind it.

asked        what a browser asks for, checked, and how much work it is
models       the models that may be chosen, and what the page needs to know of one
jobs         sessions, and a queue with one worker
stopping     the end of a cancelled job, between two layers
outputs      clips on a disk, by ids that nobody can guess
comparison   a job that makes clips of one to four settings, with their traces and metrics
looks        the jobs that look closer: the spectrum of a setting, and a study
truth        what a prompt asks for, drawn exactly, where the world knows it
carry        command line, Python and study of a setting
engine       all of it together, without a server
example      the finished comparison that the page opens with
server       the page and the engine behind addresses, on the server of Gradio

The engine needs neither Gradio nor a browser. The server needs the extra ``studio``.
"""
