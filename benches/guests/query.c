// A query of a database in memory (SQLite): branches and calls.
#include "program.h"

#include "sqlite3.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 20000 };
static sqlite3_stmt *query;
static char result[4096];

// The little of an operating system that a database in memory asks for, the same wherever the program runs.
static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
	(void)vfs, (void)name, (void)flags, (void)out;
	file->pMethods = NULL;
	return SQLITE_CANTOPEN;
}

static int delete_file(sqlite3_vfs *vfs, const char *name, int sync)
{
	(void)vfs, (void)name, (void)sync;
	return SQLITE_OK;
}

static int access_file(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
	(void)vfs, (void)name, (void)flags;
	*out = 0;
	return SQLITE_OK;
}

static int full_path(sqlite3_vfs *vfs, const char *name, int len, char *out)
{
	(void)vfs;
	sqlite3_snprintf(len, out, "%s", name);
	return SQLITE_OK;
}

static int randomness(sqlite3_vfs *vfs, int len, char *out)
{
	(void)vfs;
	memset(out, 4, (size_t)len);
	return len;
}

static int wait_for(sqlite3_vfs *vfs, int us)
{
	(void)vfs;
	return us;
}

static int now(sqlite3_vfs *vfs, double *out)
{
	(void)vfs;
	*out = 2461000.5;
	return SQLITE_OK;
}

int sqlite3_os_init(void)
{
	static sqlite3_vfs vfs = {
		.iVersion = 1,
		.szOsFile = sizeof(sqlite3_file),
		.mxPathname = 64,
		.zName = "none",
		.xOpen = open_file,
		.xDelete = delete_file,
		.xAccess = access_file,
		.xFullPathname = full_path,
		.xRandomness = randomness,
		.xSleep = wait_for,
		.xCurrentTime = now,
	};
	return sqlite3_vfs_register(&vfs, 1);
}

int sqlite3_os_end(void)
{
	return SQLITE_OK;
}

static void must(int code)
{
	if (code != SQLITE_OK && code != SQLITE_DONE && code != SQLITE_ROW)
		abort();
}

void prepare(void)
{
	sqlite3 *db;
	sqlite3_stmt *insert;

	must(sqlite3_open(":memory:", &db));
	must(sqlite3_exec(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, kind INTEGER, price REAL); BEGIN",
			  NULL, NULL, NULL));
	must(sqlite3_prepare_v2(db, "INSERT INTO t(name, kind, price) VALUES(printf('item %06d', ?1 * 7919 % 1000003),"
				    " ?1 % 17, ?1 % 101 * 0.25)", -1, &insert, NULL));
	for (int i = 0; i < ROWS; i++) {
		must(sqlite3_bind_int(insert, 1, i));
		must(sqlite3_step(insert));
		must(sqlite3_reset(insert));
	}
	must(sqlite3_finalize(insert));
	must(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL));
	must(sqlite3_prepare_v2(db, "SELECT kind, count(*), sum(price), min(name) FROM t WHERE name LIKE '%7%'"
				    " GROUP BY kind ORDER BY 3 DESC, 1", -1, &query, NULL));
}

struct answer respond(const char *url)
{
	int len = 0, code;

	(void)url;
	while ((code = sqlite3_step(query)) == SQLITE_ROW) {
		sqlite3_snprintf((int)sizeof result - len, result + len, "%d %d %s %s\n", sqlite3_column_int(query, 0),
				 sqlite3_column_int(query, 1), sqlite3_column_text(query, 2),
				 sqlite3_column_text(query, 3));
		len += (int)strlen(result + len);
	}
	must(code);
	must(sqlite3_reset(query));
	return (struct answer){"text/plain", result, (size_t)len};
}
