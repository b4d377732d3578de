// A database in memory, filled before the first request, and asked through the URL:
//
//   /?q=ham                  pizzas whose name or topping holds the text
//   /count                   rows in the menu
//   /pizza?id=7              one of them
//   /order?id=7&name=Ann     writes an order, and counts the orders: always 1, because the next request
//                            starts from the database as main() left it
//
// Answers are JSON. Text from the URL only ever reaches SQL as a bound parameter.
//
// LDLIBS: -lsqlite3 -lm

#include <kvm_api.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sqlite3 *db;

// Prepared in main() as well: parsing SQL is not a request's work.
static sqlite3_stmt *search, *count, *by_id, *insert_order, *count_orders;

static const char SCHEMA[] =
	"CREATE TABLE menu(id INTEGER PRIMARY KEY, pizza TEXT, topping TEXT, crust TEXT, cm INTEGER, price REAL);"
	"CREATE TABLE orders(id INTEGER PRIMARY KEY, menu_id INTEGER REFERENCES menu(id), name TEXT);"
	"CREATE INDEX menu_pizza ON menu(pizza);";

#define ROW "json_object('id', id, 'pizza', pizza, 'topping', topping, 'crust', crust, 'cm', cm, 'price', price)"

// ---------------------------------------------------------------- main(): the menu

static void must(int result)
{
	if (result == SQLITE_OK || result == SQLITE_DONE || result == SQLITE_ROW)
		return;
	fprintf(stderr, "sqlite: %s\n", sqlite3_errmsg(db));
	exit(1);
}

static void prepare(sqlite3_stmt **statement, const char *sql)
{
	must(sqlite3_prepare_v2(db, sql, -1, statement, NULL));
}

static void fill(void)
{
	static const struct {
		const char *name, *topping;
		double price;
	} pizzas[] = {
		{"Margherita", "tomato, mozzarella, basil", 7.5},
		{"Marinara", "tomato, garlic, oregano", 6.5},
		{"Napoli", "tomato, mozzarella, anchovies, capers", 8.5},
		{"Funghi", "tomato, mozzarella, mushrooms", 8},
		{"Prosciutto", "tomato, mozzarella, ham", 8.5},
		{"Capricciosa", "tomato, mozzarella, ham, mushrooms, artichokes, olives", 10},
		{"Quattro Stagioni", "tomato, mozzarella, ham, mushrooms, artichokes, peppers", 10},
		{"Quattro Formaggi", "mozzarella, gorgonzola, fontina, parmesan", 9.5},
		{"Diavola", "tomato, mozzarella, spicy salami, chili", 9.5},
		{"Hawaii", "tomato, mozzarella, ham, pineapple", 9},
		{"Tonno", "tomato, mozzarella, tuna, onions", 9.5},
		{"Frutti di Mare", "tomato, prawns, mussels, squid, garlic", 12},
		{"Vegetariana", "tomato, mozzarella, peppers, aubergine, courgette", 9},
		{"Spinaci", "mozzarella, spinach, garlic, ricotta", 9},
		{"Parma", "tomato, mozzarella, Parma ham, rocket, parmesan", 11.5},
		{"Calabrese", "tomato, mozzarella, 'nduja, red onions", 10.5},
		{"Bianca", "mozzarella, rosemary, olive oil", 7},
		{"Tartufo", "mozzarella, mushrooms, truffle cream", 12.5},
		{"Pugliese", "tomato, mozzarella, onions, olives", 8.5},
		{"Siciliana", "tomato, mozzarella, aubergine, anchovies, olives", 9.5},
	};
	static const char *const crusts[] = {"thin", "classic", "wholemeal", "sourdough"};
	static const struct {
		int cm;
		double factor;
	} sizes[] = {{24, 0.75}, {28, 0.9}, {32, 1}, {36, 1.25}, {45, 1.9}};
	sqlite3_stmt *insert;

	prepare(&insert, "INSERT INTO menu(pizza, topping, crust, cm, price) VALUES(?1, ?2, ?3, ?4, round(?5, 2))");
	must(sqlite3_exec(db, "BEGIN", NULL, NULL, NULL));
	for (size_t p = 0; p < sizeof pizzas / sizeof *pizzas; p++) {
		for (size_t c = 0; c < sizeof crusts / sizeof *crusts; c++) {
			for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
				must(sqlite3_bind_text(insert, 1, pizzas[p].name, -1, SQLITE_STATIC));
				must(sqlite3_bind_text(insert, 2, pizzas[p].topping, -1, SQLITE_STATIC));
				must(sqlite3_bind_text(insert, 3, crusts[c], -1, SQLITE_STATIC));
				must(sqlite3_bind_int(insert, 4, sizes[s].cm));
				must(sqlite3_bind_double(insert, 5, pizzas[p].price * sizes[s].factor));
				must(sqlite3_step(insert));
				must(sqlite3_reset(insert));
			}
		}
	}
	must(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL));
	must(sqlite3_finalize(insert));
}

// ---------------------------------------------------------------- a request

static void fail(int status, const char *why)
{
	char json[256];

	snprintf(json, sizeof json, "{\"error\":\"%s\"}\n", why);
	backend_response_str(status, "application/json", json);
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

// Takes the value of `name` from the query string and decodes it; false when it is not there.
static bool from_query(const char *url, const char *name, char *value, size_t size)
{
	const size_t name_len = strlen(name);
	size_t len = 0;

	for (const char *p = strchr(url, '?'); p; p = strchr(p, '&')) {
		p++;
		if (strncmp(p, name, name_len) || p[name_len] != '=')
			continue;
		for (p += name_len + 1; *p && *p != '&' && len + 1 < size; p++) {
			if (*p == '%' && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
				value[len++] = (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
				p += 2;
			} else {
				value[len++] = *p == '+' ? ' ' : *p;
			}
		}
		value[len] = '\0';
		return true;
	}
	return false;
}

// Runs a statement that gives one JSON text.
static void respond(sqlite3_stmt *statement)
{
	static char json[1 << 20];
	const int result = sqlite3_step(statement);

	if (result == SQLITE_DONE)
		fail(404, "no such pizza");
	if (result != SQLITE_ROW)
		fail(500, "the query failed");
	const int len = snprintf(json, sizeof json, "%s\n", sqlite3_column_text(statement, 0));
	backend_response(200, "application/json", 16, json, len < (int)sizeof json ? len : (int)sizeof json - 1);
}

static void order(const char *url, const char *id)
{
	char name[128];

	if (!from_query(url, "name", name, sizeof name) || !*name)
		fail(400, "who orders? /order?id=7&name=Ann");
	sqlite3_bind_text(insert_order, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_text(insert_order, 2, name, -1, SQLITE_STATIC);
	if (sqlite3_step(insert_order) != SQLITE_DONE)
		fail(500, "the order failed");
	if (sqlite3_changes(db) != 1)
		fail(404, "no such pizza");
	respond(count_orders);
}

static void help(void)
{
	backend_response_str(200, "text/plain",
			     "A pizza menu in SQLite, in memory, filled before the first request.\n\n"
			     "  ?q=ham                search\n"
			     "  count                 rows in the menu\n"
			     "  pizza?id=7            one of them\n"
			     "  order?id=7&name=Ann   an order: the first one, every time\n");
}

// The last part of the path decides, so that the program can be mounted below any other.
static bool last_part_is(const char *url, const char *part)
{
	const char *end = url + strcspn(url, "?");
	const size_t len = strlen(part);

	return (size_t)(end - url) > len && end[-(long)len - 1] == '/' && !memcmp(end - len, part, len);
}

KVM_EXPORT void my_backend(const char *url)
{
	char text[128];

	if (last_part_is(url, "count"))
		respond(count);
	if (last_part_is(url, "pizza") || last_part_is(url, "order")) {
		if (!from_query(url, "id", text, sizeof text))
			fail(400, "which pizza? ?id=7");
		if (last_part_is(url, "order"))
			order(url, text);
		sqlite3_bind_text(by_id, 1, text, -1, SQLITE_STATIC);
		respond(by_id);
	}
	if (from_query(url, "q", text, sizeof text)) {
		sqlite3_bind_text(search, 1, text, -1, SQLITE_STATIC);
		respond(search);
	}
	help();
}

int main(void)
{
	must(sqlite3_open(":memory:", &db));
	must(sqlite3_exec(db, SCHEMA, NULL, NULL, NULL));
	fill();
	prepare(&search, "SELECT json_group_array(json(row)) FROM (SELECT " ROW " AS row FROM menu"
			 " WHERE instr(lower(pizza || ' ' || topping), lower(?1)) ORDER BY price, id LIMIT 20)");
	prepare(&count, "SELECT json_object('rows', count(*)) FROM menu");
	prepare(&by_id, "SELECT " ROW " FROM menu WHERE id = CAST(?1 AS INTEGER)");
	prepare(&insert_order, "INSERT INTO orders(menu_id, name)"
			       " SELECT id, ?2 FROM menu WHERE id = CAST(?1 AS INTEGER)");
	prepare(&count_orders, "SELECT json_object('orders', count(*), 'last', max(orders.id), 'pizza', pizza)"
			       " FROM orders JOIN menu ON menu.id = menu_id");
	// The database stays open: the return of main() is the end of the set-up, not of the program.
	return 0;
}
