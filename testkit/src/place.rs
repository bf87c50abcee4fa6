//! Where a test's lake is: the same for the services, as variables, and for the test's own look at it.

use std::path::Path;

use plimsoll_lake::{LakeConfig, S3Config};
use secrecy::SecretString;

use crate::{Servers, TestPostgres, postgres, s3};

/// A lake's place.
#[derive(Debug, Clone)]
pub struct LakePlace {
    catalog: String,
    is_postgres: bool,
    data_path: String,
    endpoint: Option<String>,
}

impl LakePlace {
    /// A lake in a folder, as [`LakeConfig::embedded`] places it.
    #[must_use]
    pub fn embedded(folder: &Path) -> Self {
        let LakeConfig { catalog, data_path, .. } = LakeConfig::embedded(folder);
        Self { catalog, is_postgres: false, data_path, endpoint: None }
    }

    /// A new lake on PostgreSQL and S3.
    #[must_use]
    pub fn fleet(servers: &Servers) -> Self {
        Self::on(&servers.postgres, &servers.s3)
    }

    /// A new lake on this PostgreSQL and this store.
    #[must_use]
    pub fn on(server: &TestPostgres, store: &s3::TestS3) -> Self {
        let name = format!("lake_{}", ulid::Ulid::generate().to_string().to_lowercase());
        server.create_database(&name);
        Self {
            catalog: catalog(&name, server.port()),
            is_postgres: true,
            data_path: format!("s3://{}/{name}/", s3::BUCKET),
            endpoint: Some(store.endpoint()),
        }
    }

    /// The same lake, its store reached at another address.
    #[must_use]
    pub fn with_endpoint(self, endpoint: &str) -> Self {
        Self { endpoint: Some(endpoint.to_owned()), ..self }
    }

    /// The same lake, its PostgreSQL reached at another port.
    #[must_use]
    pub fn with_catalog_port(self, port: u16) -> Self {
        Self { catalog: catalog(self.database(), port), ..self }
    }

    /// The database of a PostgreSQL catalog.
    ///
    /// # Panics
    /// When the catalog is another.
    #[must_use]
    pub fn database(&self) -> &str {
        let name = self.catalog.strip_prefix("postgres:dbname=").and_then(|rest| rest.split(' ').next());
        name.expect("a PostgreSQL catalog")
    }

    /// Folder or prefix of the files.
    #[must_use]
    pub fn data_path(&self) -> &str {
        &self.data_path
    }

    /// For a connection of the test's own.
    #[must_use]
    pub fn config(&self) -> LakeConfig {
        let s3 = self.endpoint.as_ref().map(|endpoint| S3Config {
            endpoint: Some(endpoint.clone()),
            access_key_id: s3::KEY_ID.to_owned(),
            secret_access_key: Some(SecretString::from(s3::SECRET)),
            secret_access_key_file: None,
            region: "us-east-1".to_owned(),
            use_ssl: false,
            url_style: "path".to_owned(),
            timeout: std::time::Duration::from_secs(30),
        });
        let catalog_password = self.is_postgres.then(|| SecretString::from(postgres::PASSWORD));
        let (catalog, data_path) = (self.catalog.clone(), self.data_path.clone());
        LakeConfig { catalog, catalog_password, data_path, s3, ..LakeConfig::default() }
    }

    /// For a service.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PLIMSOLL_LAKE__CATALOG", self.catalog.clone()),
            ("PLIMSOLL_LAKE__DATA_PATH", self.data_path.clone()),
        ];
        if self.is_postgres {
            variables.push(("PLIMSOLL_LAKE__CATALOG_PASSWORD", postgres::PASSWORD.to_owned()));
        }
        if let Some(endpoint) = &self.endpoint {
            variables.extend([
                ("PLIMSOLL_LAKE__S3__ENDPOINT", endpoint.clone()),
                ("PLIMSOLL_LAKE__S3__ACCESS_KEY_ID", s3::KEY_ID.to_owned()),
                ("PLIMSOLL_LAKE__S3__SECRET_ACCESS_KEY", s3::SECRET.to_owned()),
                ("PLIMSOLL_LAKE__S3__REGION", "us-east-1".to_owned()),
                ("PLIMSOLL_LAKE__S3__USE_SSL", "false".to_owned()),
                ("PLIMSOLL_LAKE__S3__URL_STYLE", "path".to_owned()),
            ]);
        }
        variables
    }
}

fn catalog(database: &str, port: u16) -> String {
    format!("postgres:dbname={database} host=127.0.0.1 port={port} user={}", postgres::USER)
}
