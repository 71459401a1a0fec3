//! What the donor's databases need of the host that they are on: how they sort, which libraries they load.

use crate::{Donor, plan::DonorFacts};
use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Which libraries the server loads by itself, and where it looks for those without a directory.
pub const LIBRARY_SETTINGS: [&str; 3] =
    ["shared_preload_libraries", "session_preload_libraries", "dynamic_library_path"];

/// The databases, as an array, and whether anybody is let in; nobody is to one that was half dropped.
const NAMES: &str = "select json_agg(json_build_array(datname, datallowconn and datconnlimit <> -2) order by datname) \
    from pg_database where datname <> 'template0'";

/// The settings of [`LIBRARY_SETTINGS`], and what is loaded for roles and databases.
const SETTINGS: &str = "select json_build_object(\
    'settings', (select json_object_agg(name, json_build_object('value', setting, 'file', sourcefile)) \
        from pg_settings where name in \
            ('shared_preload_libraries', 'session_preload_libraries', 'dynamic_library_path')), \
    'roles', (select coalesce(json_agg(distinct split_part(one, '=', 2)), '[]') \
        from pg_db_role_setting, unnest(setconfig) one where one like 'session_preload_libraries=%'), \
    'slots', (select coalesce(json_agg(slot_name order by slot_name), '[]') \
        from pg_replication_slots where slot_type = 'logical' and not temporary))";

/// Whether there are records in the WAL that only a library can replay.
const MANAGERS: &str =
    "select exists (select from pg_get_wal_resource_managers() where not rm_builtin)";

/// What a database needs. Fields of catalogs that not every version has are looked up by their names.
const NEEDS: &str = r"select json_build_object(
  'name', d.datname, 'template', d.datistemplate,
  'collation', json_build_object(
    'name', 'default', 'provider', coalesce(to_jsonb(d)->>'datlocprovider', 'c'),
    'locale', coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale', d.datcollate),
    'ctype', d.datctype, 'version', to_jsonb(d)->>'datcollversion', 'indexes', 0),
  'extensions', (select coalesce(json_object_agg(extname, coalesce(
    (select version from pg_available_extension_versions where name = extname and version = extversion), '')), '{}')
    from pg_extension),
  'libraries', (select coalesce(json_object_agg(probin, example), '{}') from (
    select probin, min(oid::regprocedure::text) example from pg_proc where probin is not null group by 1) l),
  'unlogged', (select coalesce(json_agg(oid::regclass::text order by oid::regclass::text), '[]') from pg_class
    where relpersistence = 'u' and relkind in ('r', 'm')),
  'collations', (select coalesce(json_agg(json_build_object(
      'name', n.oid::regcollation::text, 'provider', n.collprovider,
      'locale', coalesce(to_jsonb(n)->>'colllocale', to_jsonb(n)->>'colliculocale', n.collcollate, ''),
      'ctype', n.collctype, 'version', n.collversion, 'indexes', u.indexes, 'example', u.example)), '[]')
    from pg_collation n join (
      select oid, count(distinct sorted) as indexes, min(sorted) as example from (
        select unnest(i.indcollation::oid[]) oid, i.indexrelid::regclass::text sorted from pg_index i
        union all select unnest(p.partcollation::oid[]), 'the partitions of ' || p.partrelid::regclass::text
          from pg_partitioned_table p
        union all select a.attcollation, null from pg_attribute a where a.attnum > 0 and not a.attisdropped
      ) used group by oid) u on u.oid = n.oid))
  from pg_database d where d.datname = current_database()";

/// What all of them need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub databases: Vec<Database>,
    /// Databases that let nobody in, which could not be looked at.
    pub closed: Vec<String>,
    /// Of [`LIBRARY_SETTINGS`].
    pub settings: BTreeMap<String, Setting>,
    /// Libraries that are loaded for a role, or for a database.
    pub of_roles: Vec<String>,
    /// Slots of logical replication.
    pub logical_slots: Vec<String>,
    /// Whether there are records in the WAL that only a library can replay.
    pub managers: bool,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Setting {
    pub value: String,
    /// Where it was made.
    pub file: Option<String>,
}

impl Setting {
    /// Whether it was made by `alter system`, whose file comes with the database.
    pub fn comes_along(&self) -> bool {
        self.file.as_deref().is_some_and(|file| file.ends_with(crate::donor::AUTO_CONF))
    }
}

/// What a database needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Database {
    pub name: String,
    pub template: bool,
    /// How it sorts where nothing else is said.
    pub collation: Collation,
    /// Its extensions, and their versions, where the donor's host has these.
    pub extensions: BTreeMap<String, String>,
    /// Its libraries, and a function of each.
    pub libraries: BTreeMap<String, String>,
    /// Its tables of which nothing is in the WAL.
    #[serde(default)]
    pub unlogged: Vec<String>,
    /// The collations that something in it has; `d` as provider stands for the database's own.
    pub collations: Vec<Collation>,
}

/// An order of texts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Collation {
    pub name: String,
    /// `c`: the C library; `i`: ICU; `b`: PostgreSQL itself; `d`: the database's.
    pub provider: String,
    pub locale: String,
    /// What letters are; of the C library.
    pub ctype: Option<String>,
    /// The version of the library that it was made with, where that is known.
    pub version: Option<String>,
    /// How many indexes are in this order.
    pub indexes: u64,
    /// One of them.
    pub example: Option<String>,
}

impl Database {
    /// Its own collation and those of what is in it, with its own put in where that is meant.
    pub fn orders(&self) -> Vec<Collation> {
        let own = self.collation.clone();
        let used = self.collations.iter().map(|used| match used.provider.as_str() {
            "d" => {
                let (indexes, example) = (used.indexes, used.example.clone());
                Collation { indexes, example, ..own.clone() }
            }
            _ => used.clone(),
        });
        let mut orders: Vec<Collation> = used.collect();
        if !orders.iter().any(|order| order.name == own.name) {
            orders.push(own);
        }
        orders
    }
}

/// The libraries that a setting names.
pub(super) fn names(setting: &str) -> impl Iterator<Item = &str> {
    setting.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty())
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("the donor answers something unexpected: {text}"))
}

/// Asks all databases of the donor.
pub(super) async fn look(donor: &Donor, facts: &DonorFacts) -> Result<Needs> {
    #[derive(Deserialize)]
    struct Loaded {
        settings: BTreeMap<String, Setting>,
        roles: Vec<String>,
        slots: Vec<String>,
    }
    let (open, closed): (Vec<_>, Vec<_>) =
        parse::<Vec<(String, bool)>>(&donor.sql(NAMES).await?)?.into_iter().partition(|one| one.1);
    let mut databases = Vec::new();
    for (name, _) in open {
        databases.push(parse(&donor.sql_in(&name, NEEDS, None).await?)?);
    }
    let loaded: Loaded = parse(&donor.sql(SETTINGS).await?)?;
    Ok(Needs {
        databases,
        closed: closed.into_iter().map(|(name, _)| name).collect(),
        settings: loaded.settings,
        of_roles: loaded.roles,
        logical_slots: loaded.slots,
        managers: facts.version >= 150_000 && donor.sql(MANAGERS).await? == "t",
    })
}
