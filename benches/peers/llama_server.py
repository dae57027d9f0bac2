"""Starts llama.cpp's own server out of the xllamacpp wheel, for the comparison. Runs in the peers' environment."""

import argparse
import signal
from pathlib import Path

import xllamacpp


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192, help="tokens per slot")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings, pooled as the file says")
    parser.add_argument("--mmproj", default="", help="tower for pictures")
    parser.add_argument("--chat-template", type=Path, help="file that replaces the model's")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.n_parallel = args.slots
    params.n_ctx = args.context * args.slots
    params.cont_batching = True
    params.n_gpu_layers = 0
    if args.embedding:
        params.embedding = True
        # A text has to fit into one batch.
        params.n_batch = params.n_ubatch = 2048
    params.mmproj.path = args.mmproj
    if args.chat_template is not None:
        params.chat_template = args.chat_template.read_text()
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
