-- The part of Citus's catalog that the controller and its tests look at, with the columns of
-- Citus 13.2. Needs allow_system_table_mods = on and a superuser.

CREATE SCHEMA standin;
-- The rows that a node has of distributed and reference tables: what Citus has shard tables for.
CREATE SCHEMA standin_shards;
CREATE EXTENSION dblink SCHEMA standin;

CREATE TYPE pg_catalog.noderole AS ENUM ('primary', 'secondary', 'unavailable');

CREATE SEQUENCE pg_catalog.pg_dist_node_nodeid_seq;
CREATE SEQUENCE pg_catalog.pg_dist_groupid_seq;
CREATE SEQUENCE pg_catalog.pg_dist_shardid_seq START 102008;
CREATE SEQUENCE pg_catalog.pg_dist_placement_placementid_seq;

CREATE TABLE pg_catalog.pg_dist_node (
  nodeid integer PRIMARY KEY DEFAULT nextval('pg_catalog.pg_dist_node_nodeid_seq'),
  groupid integer NOT NULL DEFAULT nextval('pg_catalog.pg_dist_groupid_seq'),
  nodename text NOT NULL,
  nodeport integer NOT NULL DEFAULT 5432,
  noderack text NOT NULL DEFAULT 'default',
  hasmetadata boolean NOT NULL DEFAULT false,
  isactive boolean NOT NULL DEFAULT true,
  noderole noderole NOT NULL DEFAULT 'primary',
  nodecluster name NOT NULL DEFAULT 'default',
  metadatasynced boolean DEFAULT false,
  shouldhaveshards boolean NOT NULL DEFAULT true,
  nodeisclone boolean NOT NULL DEFAULT false,
  nodeprimarynodeid integer NOT NULL DEFAULT 0,
  CONSTRAINT pg_dist_node_nodename_nodeport_key UNIQUE (nodename, nodeport),
  CONSTRAINT primaries_are_only_allowed_in_the_default_cluster
    CHECK (NOT (nodecluster <> 'default' AND noderole = 'primary'))
);

CREATE TABLE pg_catalog.pg_dist_local_group (
  groupid integer PRIMARY KEY
);
INSERT INTO pg_catalog.pg_dist_local_group (groupid) VALUES (0);

CREATE FUNCTION standin.local_group() RETURNS integer
LANGUAGE sql STABLE AS $$ SELECT groupid FROM pg_catalog.pg_dist_local_group $$;

CREATE TABLE pg_catalog.pg_dist_authinfo (
  nodeid integer NOT NULL,
  rolename name NOT NULL,
  authinfo text NOT NULL
);
CREATE UNIQUE INDEX pg_dist_authinfo_identification_index
  ON pg_catalog.pg_dist_authinfo (rolename, nodeid DESC);

CREATE TABLE pg_catalog.pg_dist_partition (
  logicalrelid regclass NOT NULL UNIQUE,
  partmethod "char" NOT NULL,
  partkey text,
  colocationid integer NOT NULL DEFAULT 0,
  repmodel "char" NOT NULL DEFAULT 'c',
  autoconverted boolean DEFAULT false
);

CREATE TABLE pg_catalog.pg_dist_shard (
  logicalrelid regclass NOT NULL,
  shardid bigint NOT NULL UNIQUE,
  shardstorage "char" NOT NULL,
  shardminvalue text,
  shardmaxvalue text
);
CREATE INDEX pg_dist_shard_logical_relid_index ON pg_catalog.pg_dist_shard (logicalrelid);
-- Citus finds a row's shard in its cache; without an index 10,000 shards would be read each time.
CREATE INDEX pg_dist_shard_hash_index
  ON pg_catalog.pg_dist_shard (logicalrelid, (shardminvalue::integer));

CREATE TABLE pg_catalog.pg_dist_placement (
  placementid bigint NOT NULL UNIQUE
    DEFAULT nextval('pg_catalog.pg_dist_placement_placementid_seq'),
  shardid bigint NOT NULL,
  shardstate integer NOT NULL,
  shardlength bigint NOT NULL,
  groupid integer NOT NULL,
  CONSTRAINT placement_shardid_groupid_unique_index UNIQUE (shardid, groupid)
);
CREATE INDEX pg_dist_placement_groupid_index ON pg_catalog.pg_dist_placement (groupid);

GRANT SELECT ON
  pg_catalog.pg_dist_node, pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_partition,
  pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement,
  pg_catalog.pg_dist_node_nodeid_seq, pg_catalog.pg_dist_groupid_seq,
  pg_catalog.pg_dist_shardid_seq, pg_catalog.pg_dist_placement_placementid_seq
TO PUBLIC;

CREATE FUNCTION standin.refuse_second_primary() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF NEW.noderole = 'primary' AND EXISTS (
    SELECT FROM pg_dist_node AS other
    WHERE other.groupid = NEW.groupid
      AND other.noderole = 'primary'
      AND other.nodeid <> NEW.nodeid
  ) THEN
    RAISE EXCEPTION 'there cannot be two primary nodes in a group';
  END IF;
  RETURN NEW;
END
$$;

CREATE TRIGGER pg_dist_node_trigger
BEFORE INSERT OR UPDATE ON pg_catalog.pg_dist_node
FOR EACH ROW EXECUTE FUNCTION standin.refuse_second_primary();

CREATE FUNCTION pg_catalog.citus_version() RETURNS text
LANGUAGE sql STABLE STRICT AS $$ SELECT 'Citus 13.2.2 (stand-in for tests)'::text $$;

CREATE FUNCTION pg_catalog.citus_is_coordinator() RETURNS boolean
LANGUAGE sql STRICT AS $$
  SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_local_group WHERE groupid = 0)
$$;

-- Citus's functions for the processes of all nodes: with them an untyped pid is ambiguous.
CREATE FUNCTION pg_catalog.pg_cancel_backend(global_pid bigint) RETURNS boolean
LANGUAGE sql STRICT AS $$
  SELECT pg_catalog.pg_cancel_backend((global_pid % 10000000000)::integer)
$$;

CREATE FUNCTION pg_catalog.pg_terminate_backend(global_pid bigint, timeout bigint DEFAULT 0) RETURNS boolean
LANGUAGE sql STRICT AS $$
  SELECT pg_catalog.pg_terminate_backend((global_pid % 10000000000)::integer, timeout)
$$;

-- CREATE EXTENSION IF NOT EXISTS citus then finds what it wants, as it does on a real coordinator.
INSERT INTO pg_catalog.pg_extension
  (oid, extname, extowner, extnamespace, extrelocatable, extversion, extconfig, extcondition)
SELECT
  pg_catalog.pg_nextoid('pg_extension', 'oid', 'pg_extension_oid_index'),
  'citus', datdba, 'pg_catalog'::regnamespace, false, '13.2-1', NULL, NULL
FROM pg_catalog.pg_database
WHERE datname = current_database();
COMMENT ON EXTENSION citus IS 'stand-in for Citus in tests';
