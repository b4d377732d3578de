// What a picture shows, PNG or WebP: "WIDTH HEIGHT" and the colours of its four corners, as RRGGBB.

#include <png.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <webp/decode.h>

int main(int argc, char **argv)
{
	static uint8_t file[16 << 20];
	FILE *in = argc == 2 ? fopen(argv[1], "rb") : NULL;
	const size_t len = in ? fread(file, 1, sizeof file, in) : 0;
	png_image png = {.version = PNG_IMAGE_VERSION};
	int width = 0, height = 0;
	uint8_t *rgb = WebPDecodeRGB(file, len, &width, &height);

	if (!rgb && png_image_begin_read_from_memory(&png, file, len)) {
		png.format = PNG_FORMAT_RGB;
		width = (int)png.width;
		height = (int)png.height;
		rgb = malloc(PNG_IMAGE_SIZE(png));
		if (!png_image_finish_read(&png, NULL, rgb, 0, NULL))
			return 1;
	}
	if (!rgb)
		return 1;
	printf("%d %d", width, height);
	for (int i = 0; i < 4; i++) {
		const uint8_t *at = rgb + 3 * ((size_t)(i / 2 ? height - 1 : 0) * (size_t)width + (size_t)(i % 2 ? width - 1 : 0));

		printf(" %02x%02x%02x", at[0], at[1], at[2]);
	}
	printf("\n");
	return 0;
}
