"A 4-bit base and an adapter, chosen for the hardware with the reason."
