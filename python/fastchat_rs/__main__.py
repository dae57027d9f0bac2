"""`python -m fastchat_rs` is the command `fastchat-rs`."""

from fastchat_rs.cli import main

main()
