//! Benchmarks of the other crates, in `benches/`. A crate of its own, so that only who measures compiles what measures.
