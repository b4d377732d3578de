// What a picture shows, AVIF, by libavif: "WIDTH HEIGHT" and the colours of its four corners, as RRGGBB.

#include <avif/avif.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	avifDecoder *decoder = avifDecoderCreate();
	avifImage *image = avifImageCreateEmpty();
	avifRGBImage rgb;

	if (argc != 2 || avifDecoderReadFile(decoder, image, argv[1]) != AVIF_RESULT_OK)
		return 1;
	avifRGBImageSetDefaults(&rgb, image);
	rgb.format = AVIF_RGB_FORMAT_RGB;
	rgb.depth = 8;
	avifRGBImageAllocatePixels(&rgb);
	if (avifImageYUVToRGB(image, &rgb) != AVIF_RESULT_OK)
		return 1;
	printf("%u %u", image->width, image->height);
	for (int i = 0; i < 4; i++) {
		const uint8_t *at = rgb.pixels + (i / 2 ? image->height - 1 : 0) * rgb.rowBytes + 3 * (i % 2 ? image->width - 1 : 0);

		printf(" %02x%02x%02x", at[0], at[1], at[2]);
	}
	printf("\n");
	return 0;
}
