//! Samples that are not built in: of commands, of Prometheus exporters, and of programs that hand them over.
