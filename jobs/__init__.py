"""Where the audit's steps run: in this process, or on Ray workers."""
