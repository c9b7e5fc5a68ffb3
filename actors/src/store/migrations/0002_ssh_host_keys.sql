-- What a VM's SSH server proves itself with: the ed25519 seed, then the public half. NULL until its next boot for VMs from before.
ALTER TABLE vms ADD COLUMN ssh_host_key BLOB CHECK (ssh_host_key IS NULL OR length(ssh_host_key) = 64);
