// Prints each topology that the original's client library reports, a JSON list a line.
// node original_client.js DIRECTORY-OF-THE-LIBRARY PATH-OF-THE-SHARD SERVERS
'use strict';
const [library, path, connStr] = process.argv.slice(2);
const options = { sessionTimeout: 30000, spinDelay: 200, retries: 60 };
const client = require(library).createClient({ path, zk: { connStr, opts: options } });
client.on('topology', (urls) => console.log(JSON.stringify(urls)));
client.on('error', (error) => {
    console.error(error);
    process.exit(1);
});
