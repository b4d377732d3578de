// A picture of the Mandelbrot set as PNG: floating point, then compression.
#include "program.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#define STBIW_ASSERT(x) ((void)0)
#include "stb_image_write.h"

enum { SIZE = 256, ITERATIONS = 400 };

static uint8_t picture[SIZE * SIZE * 3];
static uint8_t *file;

void prepare(void)
{
	stbi_write_png_compression_level = 6;
}

static void colour(uint8_t *rgb, double x, double y)
{
	double zx = 0, zy = 0, xx = 0, yy = 0;
	int n = 0;

	for (; n < ITERATIONS && xx + yy < 1e4; n++) {
		zy = 2 * zx * zy + y;
		zx = xx - yy + x;
		xx = zx * zx;
		yy = zy * zy;
	}
	const double smooth = n == ITERATIONS ? 0 : n + 1 - log2(log2(xx + yy) / 2);

	rgb[0] = (uint8_t)(9 * smooth);
	rgb[1] = (uint8_t)(4 * smooth);
	rgb[2] = (uint8_t)(2 * smooth);
}

struct answer respond(const char *url)
{
	int len = 0;

	(void)url;
	for (int py = 0; py < SIZE; py++)
		for (int px = 0; px < SIZE; px++)
			colour(picture + (py * SIZE + px) * 3, -0.65 + (px - SIZE / 2) * 3.0 / SIZE,
			       (SIZE / 2 - py) * 3.0 / SIZE);
	free(file);
	file = stbi_write_png_to_mem(picture, SIZE * 3, SIZE, SIZE, 3, &len);
	return (struct answer){"image/png", file, file ? (size_t)len : 0};
}
