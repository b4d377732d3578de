// A picture of the Mandelbrot set for each URL, as PNG.
//
//   /?x=-0.7436&y=0.1318&zoom=500&size=256
//
// x and y are the middle of the picture, zoom 1 shows the whole set, size is the edge in pixels. All are
// optional. The path does not matter.
//
// Built with -DNATIVE it writes the picture of argv[1] to stdout, without a virtual machine.
//
// LDLIBS: -lpng16 -lz -lm

#include <kvm_api.h>

#include <malloc.h>
#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_SIZE = 16, DEFAULT_SIZE = 256, MAX_SIZE = 1024, MAX_ITERATIONS = 2000, COLOURS = 2048 };

// Beyond this zoom neighbouring pixels are the same number in double precision.
static const double MAX_ZOOM = 1e13;

struct view {
	double x, y, zoom;
	int size;
};

static uint8_t palette[COLOURS][3];

// The finished file. What a request writes to it is forgotten with the request, so there is nothing to free.
static struct {
	uint8_t bytes[MAX_SIZE * (MAX_SIZE * 3 + 1) + 65536];
	size_t len;
} file;

static void fail(int status, const char *why)
{
#ifdef NATIVE
	fprintf(stderr, "%d %s", status, why);
	exit(1);
#else
	backend_response_str(status, "text/plain", why);
#endif
}

// ---------------------------------------------------------------- the picture

// A ring of colours: deep blue, sky, white, amber, black and back.
static void make_palette(void)
{
	static const struct {
		double at;
		double rgb[3];
	} stops[] = {
		{0.0, {0, 7, 100}},     {0.16, {32, 107, 203}}, {0.42, {237, 255, 255}},
		{0.6425, {255, 170, 0}}, {0.8575, {0, 2, 0}},    {1.0, {0, 7, 100}},
	};

	for (int i = 0, stop = 0; i < COLOURS; i++) {
		const double at = (double)i / COLOURS;

		while (at >= stops[stop + 1].at)
			stop++;
		const double t = (at - stops[stop].at) / (stops[stop + 1].at - stops[stop].at);
		const double smooth = t * t * (3 - 2 * t);
		for (int c = 0; c < 3; c++)
			palette[i][c] = (uint8_t)lround(stops[stop].rgb[c] +
							(stops[stop + 1].rgb[c] - stops[stop].rgb[c]) * smooth);
	}
}

// In the two big bulbs of the set, where every point would cost all iterations.
static bool in_main_bulbs(double x, double y)
{
	const double q = (x - 0.25) * (x - 0.25) + y * y;

	return q * (q + (x - 0.25)) <= 0.25 * y * y || (x + 1) * (x + 1) + y * y <= 0.0625;
}

static void colour(uint8_t *rgb, double x, double y, int max_iterations)
{
	static const uint8_t inside[3] = {0, 0, 8};
	double zx = 0, zy = 0, xx = 0, yy = 0;
	int n = 0;

	if (!in_main_bulbs(x, y)) {
		// A large radius, because it makes the fraction below accurate.
		for (; n < max_iterations && xx + yy < 1e4; n++) {
			zy = 2 * zx * zy + y;
			zx = xx - yy + x;
			xx = zx * zx;
			yy = zy * zy;
		}
	}
	if (xx + yy < 1e4) {
		memcpy(rgb, inside, 3);
		return;
	}
	// The number of iterations with a fraction, so that there are no bands; its logarithm
	// keeps the colours apart far outside, and from becoming noise near the edge.
	const double iterations = n + 1 - log2(log2(xx + yy) / 2);
	const double place = log2(fmax(iterations, 1)) * 0.19 - 0.17;
	memcpy(rgb, palette[(int)((place - floor(place)) * COLOURS) % COLOURS], 3);
}

// ---------------------------------------------------------------- the file

static void png_failed(png_structp png, png_const_charp why)
{
	(void)png;
	fail(500, why);
	abort();
}

static void png_append(png_structp png, png_bytep bytes, size_t len)
{
	if (len > sizeof file.bytes - file.len)
		png_error(png, "picture too big\n");
	memcpy(file.bytes + file.len, bytes, len);
	file.len += len;
}

static void png_no_flush(png_structp png)
{
	(void)png;
}

static void render(const struct view *view)
{
	static uint8_t row[MAX_SIZE * 3];
	const int max_iterations = (int)fmin(MAX_ITERATIONS, 160 + 40 * fmax(0, log2(view->zoom)));
	const double step = 3.0 / view->zoom / view->size;
	png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, png_failed, NULL);
	png_infop info = png ? png_create_info_struct(png) : NULL;

	if (!info)
		fail(500, "out of memory\n");
	file.len = 0;
	png_set_write_fn(png, NULL, png_append, png_no_flush);
	png_set_IHDR(png, info, view->size, view->size, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
		     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
	png_set_compression_level(png, 3);
	png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_FILTER_SUB);
	png_write_info(png, info);
	for (int py = 0; py < view->size; py++) {
		for (int px = 0; px < view->size; px++)
			colour(row + px * 3, view->x + (px - view->size / 2) * step,
			       view->y - (py - view->size / 2) * step, max_iterations);
		png_write_row(png, row);
	}
	png_write_end(png, info);
	png_destroy_write_struct(&png, &info);
}

// ---------------------------------------------------------------- the URL

// Takes `name=number` from the query string, if it is there; false if it is not a number within the bounds.
static bool number_from_query(const char *url, const char *name, double min, double max, double *value)
{
	const size_t len = strlen(name);

	for (const char *p = strchr(url, '?'); p; p = strchr(p, '&')) {
		p++;
		if (strncmp(p, name, len) || p[len] != '=')
			continue;
		char *end;
		const double number = strtod(p + len + 1, &end);
		if (end == p + len + 1 || (*end != '&' && *end != '\0') || !(number >= min && number <= max))
			return false;
		*value = number;
		return true;
	}
	return true;
}

static void parse(const char *url, struct view *view)
{
	double size = DEFAULT_SIZE;

	*view = (struct view){.x = -0.65, .y = 0, .zoom = 1};
	if (!number_from_query(url, "x", -4, 4, &view->x) || !number_from_query(url, "y", -4, 4, &view->y))
		fail(400, "x and y are numbers from -4 to 4\n");
	if (!number_from_query(url, "zoom", 0.25, MAX_ZOOM, &view->zoom))
		fail(400, "zoom is a number from 0.25 to 1e13\n");
	if (!number_from_query(url, "size", MIN_SIZE, MAX_SIZE, &size))
		fail(400, "size is a number from 16 to 1024\n");
	view->size = (int)size;
}

KVM_EXPORT void my_backend(const char *url)
{
	struct view view;

	parse(url, &view);
	render(&view);
	backend_response(200, "image/png", 9, file.bytes, file.len);
}

int main(int argc, char **argv)
{
	make_palette();
#ifdef NATIVE
	struct view view;
	parse(argc > 1 ? argv[1] : "/", &view);
	render(&view);
	fwrite(file.bytes, 1, file.len, stdout);
#else
	(void)argc, (void)argv;
	// Once in advance, and what was freed stays with malloc: the heap has its size and the tables are made
	// when the machine is frozen, so that no request has to call the system for memory.
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	render(&(struct view){.x = -0.65, .y = 0, .zoom = 1, .size = DEFAULT_SIZE});
#endif
	return 0;
}
