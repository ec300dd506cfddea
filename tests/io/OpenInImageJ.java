import ij.IJ;
import ij.ImagePlus;
import ij.io.FileSaver;
import ij.measure.Calibration;

/** Opens a file as ImageJ does when it is dropped on it, prints what ImageJ makes of it, and saves its pixels. */
public class OpenInImageJ {
    public static void main(String[] paths) {
        ImagePlus image = IJ.openImage(paths[0]);
        if (image == null) {
            throw new IllegalArgumentException("ImageJ does not open " + paths[0]);
        }
        Calibration size = image.getCalibration();
        System.out.printf("%d %d %d %d %d|%s %s %s|%s|%d",
            image.getNChannels(), image.getNSlices(), image.getNFrames(), image.getHeight(), image.getWidth(),
            size.pixelDepth, size.pixelHeight, size.pixelWidth, size.getUnit(), image.getBitDepth());
        FileSaver saver = new FileSaver(image);
        if (!(image.getStackSize() > 1 ? saver.saveAsRawStack(paths[1]) : saver.saveAsRaw(paths[1]))) {
            throw new IllegalStateException("ImageJ does not save " + paths[1]);
        }
    }
}
