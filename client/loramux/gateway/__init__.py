"""The HTTP gateway for clients of OpenAI's and Anthropic's APIs: a process in front of a server.

It only translates: access control, name resolution and validation of values are the server's.
Requires the `gateway` extra; the client does not import it.
"""
