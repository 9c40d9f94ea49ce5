"""The HTTP gateway, for clients of OpenAI's and Anthropic's APIs: a process in front of a server.

It translates, and decides nothing: who may call, what a name stands for and which values are right
says the server. It needs what the extra `gateway` installs; nothing of the client imports it.
"""
