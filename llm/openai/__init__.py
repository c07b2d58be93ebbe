"""OpenAI's chat API, and the servers that speak it: llama-server, LM Studio, llama-swap, vLLM.

What they have in common is in `client`, what differs in `kinds`. Import from the modules: the
package imports nothing.
"""
