"""Documents to batches of token ids. Nothing here touches an accelerator."""
