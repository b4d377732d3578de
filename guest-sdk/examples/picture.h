// Pictures that are POSTed, decoded: PNG and JPEG. What webp.c and avif.c have in common.
#ifndef PICTURE_H
#define PICTURE_H

#include <kvm_api.h>

#include <stdio.h> // before jpeglib.h
#include <jpeglib.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SIDE = 16383 };

struct picture {
	uint8_t *rgba;
	unsigned width, height;
};

static __attribute__((noreturn)) void refuse(int16_t status, const char *why)
{
	backend_response_str(status, "text/plain", why);
}

// Room for the pixels, if there may be so many (MOST_PIXELS is the program's). Nothing is freed: the fork is put back.
static void make_room(struct picture *picture, unsigned width, unsigned height)
{
	if (width == 0 || height == 0 || width > MOST_SIDE || height > MOST_SIDE ||
	    (uint64_t)width * height > MOST_PIXELS)
		refuse(413, "a picture of too many pixels\n");
	*picture = (struct picture){malloc((size_t)width * height * 4), width, height};
	if (!picture->rgba)
		refuse(413, "no memory for this picture\n");
}

static bool decode_png(const uint8_t *data, size_t len, struct picture *picture)
{
	png_image image = {.version = PNG_IMAGE_VERSION};

	if (!png_image_begin_read_from_memory(&image, data, len))
		return false;
	image.format = PNG_FORMAT_RGBA;
	make_room(picture, image.width, image.height);
	return png_image_finish_read(&image, NULL, picture->rgba, 0, NULL);
}

static jmp_buf broken_jpeg;

static void on_broken_jpeg(j_common_ptr jpeg)
{
	(void)jpeg;
	longjmp(broken_jpeg, 1);
}

static void on_message(j_common_ptr jpeg)
{
	(void)jpeg;
}

static bool decode_jpeg(const uint8_t *data, size_t len, struct picture *picture)
{
	static struct jpeg_decompress_struct jpeg;
	static struct jpeg_error_mgr errors;

	jpeg.err = jpeg_std_error(&errors);
	errors.error_exit = on_broken_jpeg;
	errors.output_message = on_message;
	if (setjmp(broken_jpeg))
		return false;
	jpeg_create_decompress(&jpeg);
	jpeg_mem_src(&jpeg, data, len);
	if (jpeg_read_header(&jpeg, TRUE) != JPEG_HEADER_OK)
		return false;
	jpeg.out_color_space = JCS_EXT_RGBA;
	make_room(picture, jpeg.image_width, jpeg.image_height);
	jpeg_start_decompress(&jpeg);
	while (jpeg.output_scanline < jpeg.output_height) {
		JSAMPROW row = picture->rgba + (size_t)jpeg.output_scanline * picture->width * 4;

		jpeg_read_scanlines(&jpeg, &row, 1);
	}
	return true;
}

// A number among the URL's parameters.
static unsigned parameter(const char *url, const char *name, unsigned least, unsigned most, unsigned absent)
{
	const size_t len = strlen(name);

	for (const char *at = strchr(url, '?'); at; at = strchr(at, '&')) {
		char *end;
		unsigned long value;

		if (strncmp(++at, name, len) || at[len] != '=')
			continue;
		value = strtoul(at + len + 1, &end, 10);
		if (end == at + len + 1 || (*end && *end != '&') || value < least || value > most)
			refuse(400, "a parameter is out of bounds: quality is 1 to 100, width 1 to 16383\n");
		return (unsigned)value;
	}
	return absent;
}

#endif
