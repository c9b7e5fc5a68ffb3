-- What each VM may reach beyond what its network lets every VM reach; a JSON list.
ALTER TABLE vms ADD COLUMN net_allow TEXT NOT NULL DEFAULT '[]';
